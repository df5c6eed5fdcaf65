"""The tables as a person reads them: coloured on a terminal, plain lines elsewhere.

A sweep of one seed shows its trials; with several seeds a line is a configuration.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bkray.report import (
    comparison_words,
    generator_words,
    ladder_words,
    mismatch_words,
    parts,
    products,
    promises,
)
from bkray.report.configurations import Configuration, configurations, front
from bkray.report.findings import NOTHING, Findings
from bkray.report.ranking import brief, front_verdict, kind, label, leaderboard, pareto_front
from bkray.report.tables import Row
from bkray.stats import Interval
from bkray.sweep import Objective

_RANKED = ("val loss (nats)", "final_val_loss_nats")
_BESIDE = {
    "ppl over dense": "val_ppl_relative_to_dense",
    "layers": "avg_layers_executed",
    "speedup measured": "speedup_measured",
    "speedup estimate": "speedup_estimate",
    "tokens/s": "tokens_per_second",
}

_REASONS = 20
"""Reasons shown; the report and trials.parquet have all."""

_COMBINED = "Combined speed"
_PARTS = "Arms against their references"
_LADDER = "Length ladder"
_PROMISES = "The guides' promises, without the monitor and with it"

Cells = list[list[str]]
"""Lines of a table, its headings first."""


class _Shown(NamedTuple):
    leaderboard: Cells
    front: Cells
    combined: Cells
    """Pairs of features beside the product of their parts; empty without pairs."""
    parts: Cells
    """Arms held against their references; empty without any."""
    combined_words: str
    verdict: str


def render(
    rows: Sequence[Row], objectives: Sequence[Objective], findings: Findings = NOTHING
) -> Group:
    """Return leaderboard, front, what only some sweeps have, and verdict for a terminal."""
    tables, said = _parts(rows, objectives, findings)
    shown = [_rich_table(title, cells) for title, cells in tables.items()]
    return Group(*shown, *map(Text, said))


def render_text(
    rows: Sequence[Row], objectives: Sequence[Objective], findings: Findings = NOTHING
) -> str:
    """Return what ``render`` does as plain lines of any width."""
    tables, said = _parts(rows, objectives, findings)
    return "\n\n".join([*(_plain_table(title, cells) for title, cells in tables.items()), *said])


def _parts(
    rows: Sequence[Row], objectives: Sequence[Objective], findings: Findings
) -> tuple[dict[str, Cells], list[str]]:
    """Return the tables by their titles, and what is said below them."""
    ladder, compared, mismatch, generator = findings
    shown = _shown(findings.ranked(rows), objectives)
    tables = {"Leaderboard": shown.leaderboard, "Pareto front": shown.front}
    said = [shown.combined_words]
    tables |= {_COMBINED: shown.combined} if shown.combined else {}
    tables |= {_PARTS: shown.parts} if shown.parts else {}
    if ladder is not None:
        tables[_LADDER] = ladder_words.cells(ladder)
        tables |= {_PROMISES: kept} if (kept := promises.cells(ladder)) else {}
        said.append("\n".join(ladder_words.sentences(ladder)))
    if compared is not None:
        for title, columns in comparison_words.tables(compared).items():
            tables[title] = comparison_words.cells(columns)
        said.append("\n".join(comparison_words.sentences(compared)))
    if mismatch:
        tables[mismatch_words.TITLE] = mismatch_words.cells(mismatch)
        said.append("\n".join(mismatch_words.sentences(mismatch)))
    if generator:
        tables[generator_words.TITLE] = generator_words.cells(generator)
        said.append("\n".join(generator_words.sentences(generator)))
    return tables, [words for words in (*said, shown.verdict, _reasons(rows)) if words]


def _shown(rows: Sequence[Row], objectives: Sequence[Objective]) -> _Shown:
    found = configurations(rows, objectives)
    if any(len(one.rows) > 1 for one in found):
        return _Shown(
            _configuration_cells(found),
            _configuration_front_cells(found, objectives),
            _cells_of(products.columns(products.products(rows))),
            _cells_of(parts.columns(rows)),
            _said(rows),
            f"{_seed_words(found)} "
            + front_verdict([one.row for one in found], objectives, what="configurations"),
        )
    return _Shown(
        _trial_cells(rows, objectives),
        _trial_front_cells(rows, objectives),
        _cells_of(products.columns(products.products(rows))),
        _cells_of(parts.columns(rows)),
        _said(rows),
        front_verdict(rows, objectives),
    )


def _said(rows: Sequence[Row]) -> str:
    return "\n".join(filter(None, (products.said(rows), parts.said(rows))))


def _reasons(rows: Iterable[Row]) -> str:
    """Return a line per trial that did not end well and says why."""
    lines = [
        f"{row['outcome']}: {label(row)}: {row['stop_reason']}"
        for row in rows
        if row["outcome"] != "ok" and row["stop_reason"]
    ]
    rest = [f"... and {len(lines) - _REASONS} more"] if len(lines) > _REASONS else []
    return "\n".join(lines[:_REASONS] + rest)


def _trial_cells(rows: Iterable[Row], objectives: Sequence[Objective]) -> Cells:
    columns = [_RANKED[1], *_BESIDE.values()]
    cells = [["rank", "trial", _RANKED[0], *_BESIDE, "outcome"]]
    for rank, row in enumerate(leaderboard(rows, objectives), start=1):
        numbers = [brief(row[column]) for column in columns]
        cells.append([str(rank), label(row), *numbers, _outcome(row["outcome"], [row])])
    return cells


def _trial_front_cells(rows: Iterable[Row], objectives: Sequence[Objective]) -> Cells:
    columns = [objective.column for objective in objectives]
    best = pareto_front(rows, objectives)
    cells = [[kind(row), label(row), *(brief(row[c]) for c in columns)] for row in best]
    return [["kind", "trial", *columns], *cells]


def _configuration_cells(found: Iterable[Configuration]) -> Cells:
    named = ["rank", "configuration", _RANKED[0], "95% interval", *_BESIDE]
    cells = [[*named, "n", "diverged", "outcome"]]
    for rank, one in enumerate(found, start=1):
        loss = one.mean(_RANKED[1])
        means = [_mean(one.mean(column)) for column in _BESIDE.values()]
        counts = [str(one.n), str(one.n_diverged), _outcome(one.outcome, one.rows)]
        cells.append([str(rank), one.label, _mean(loss), _interval(loss), *means, *counts])
    return cells


def _configuration_front_cells(
    found: Iterable[Configuration], objectives: Sequence[Objective]
) -> Cells:
    columns = [objective.column for objective in objectives]
    headed = [word for column in columns for word in (column, "95% interval")]
    cells = [["kind", "configuration", *headed]]
    for one in front(found, objectives):
        seen = [one.mean(column) for column in columns]
        numbers = [cell for mean in seen for cell in (_mean(mean), _interval(mean))]
        cells.append([one.kind, one.label, *numbers])
    return cells


def _cells_of(columns: Mapping[str, Sequence[Any]]) -> Cells:
    """Return headings and lines; empty without a line."""
    lines = [[brief(value) for value in line] for line in zip(*columns.values(), strict=True)]
    return [list(columns), *lines] if lines else []


def _seed_words(found: Sequence[Configuration]) -> str:
    """Return how many seeds the means are over, and how far to trust their intervals."""
    counts = sorted({len(one.rows) for one in found})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seeds"
    said = (
        f"Means over {seeds}. Intervals are the bootstrap's, too narrow for few seeds; the front "
        "goes by the means alone."
    )
    if all(one.outcome == "ok" for one in found):
        return said
    return f"{said} No mean where a seed did not end as ok."


def _outcome(outcome: str, rows: Iterable[Row]) -> str:
    alive = any(row["outcome"] == "interrupted" and row["stop_reason"] is None for row in rows)
    return "running" if outcome == "interrupted" and alive else outcome


def _mean(seen: Interval | None) -> str:
    return brief(None if seen is None else seen.mean)


def _interval(seen: Interval | None) -> str:
    if seen is None or seen.low is None:
        return "-"
    return f"{brief(seen.low)} to {brief(seen.high)}"


def _rich_table(title: str, cells: Sequence[Sequence[str]]) -> Table:
    table = Table(*cells[0], title=title, box=box.SIMPLE, title_justify="left")
    for line in cells[1:]:
        style = "cyan" if line[0] in ("ACT", "length") else None
        table.add_row(*map(Text, line), style=style)
    return table


def _plain_table(title: str, cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join([title, *lines])
