"""The tables as a person reads them: coloured on a terminal, plain lines elsewhere."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bkray.report.ranking import brief, front_verdict, kind, label, leaderboard, pareto_front
from bkray.report.tables import Row
from bkray.sweep import Objective

_LEADERBOARD = {
    "val loss (nats)": "final_val_loss_nats",
    "ppl over dense": "val_ppl_relative_to_dense",
    "layers": "avg_layers_executed",
    "speedup measured": "speedup_measured",
    "speedup estimate": "speedup_estimate",
    "tokens/s": "tokens_per_second",
}


def render(rows: Sequence[Row], objectives: Sequence[Objective]) -> Group:
    """Return leaderboard, front and verdict for a terminal."""
    tables = [
        _rich_table("Leaderboard", _leaderboard_cells(rows, objectives)),
        _rich_table("Pareto front", _front_cells(rows, objectives)),
    ]
    return Group(*tables, Text(front_verdict(rows, objectives)))


def render_text(rows: Sequence[Row], objectives: Sequence[Objective]) -> str:
    """Return leaderboard, front and verdict as plain lines of any width."""
    return "\n\n".join(
        [
            _plain_table("Leaderboard", _leaderboard_cells(rows, objectives)),
            _plain_table("Pareto front", _front_cells(rows, objectives)),
            front_verdict(rows, objectives),
        ]
    )


def _leaderboard_cells(rows: Iterable[Row], objectives: Sequence[Objective]) -> list[list[str]]:
    cells = [["rank", "trial", *_LEADERBOARD, "outcome"]]
    for rank, row in enumerate(leaderboard(rows, objectives), start=1):
        numbers = [brief(row[column]) for column in _LEADERBOARD.values()]
        running = row["outcome"] == "interrupted" and row["stop_reason"] is None
        cells.append([str(rank), label(row), *numbers, "running" if running else row["outcome"]])
    return cells


def _front_cells(rows: Iterable[Row], objectives: Sequence[Objective]) -> list[list[str]]:
    columns = [objective.column for objective in objectives]
    front = pareto_front(rows, objectives)
    cells = [[kind(row), label(row), *(brief(row[c]) for c in columns)] for row in front]
    return [["kind", "trial", *columns], *cells]


def _rich_table(title: str, cells: Sequence[Sequence[str]]) -> Table:
    table = Table(*cells[0], title=title, box=box.SIMPLE, title_justify="left")
    for line in cells[1:]:
        style = "cyan" if line[0] == "ACT" else None
        table.add_row(*map(Text, line), style=style)
    return table


def _plain_table(title: str, cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join([title, *lines])
