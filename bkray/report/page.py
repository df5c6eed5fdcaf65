"""The report as one HTML page that needs no network."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any
from urllib.parse import quote

from bkray.columns import COLUMNS
from bkray.config import DataConfig
from bkray.events import OUTCOMES
from bkray.report import ladder_words, mismatch_page, mismatch_plots, promises
from bkray.report.configurations import Configuration, front_trials
from bkray.report.findings import NOTHING, Findings
from bkray.report.ladder import FILE, Ladder
from bkray.report.ladder_plots import PREFIX
from bkray.report.markup import Column, facts, json_in_script, script_in_script, table
from bkray.report.ranking import front_verdict, kind, label, leaderboard
from bkray.report.sections import (
    combined_section,
    comparison_section,
    generator_section,
    parts_section,
)
from bkray.report.tables import Row
from bkray.report.vega import Figure, javascript, theme
from bkray.sweep import Objective

_SHOWN = (
    *("avg_layers_executed", "val_ppl_relative_to_dense", "speedup_measured"),
    *("speedup_estimate", "tokens_per_second"),
)
"""Columns shown at once, beside objectives and knobs; the others at a click."""


def page(
    record: Mapping[str, Any],
    rows: Sequence[Row],
    objectives: Sequence[Objective],
    found: Sequence[Configuration],
    figures: Sequence[Figure],
    findings: Findings = NOTHING,
) -> str:
    """Return the whole page.

    Args:
        record: what ``sweep.json`` holds.
        rows: those of ``trials.parquet``.
        found: the configurations of the rows, best first.
    """
    body = _body(record, rows, objectives, found, figures, findings)
    content = {
        "specs": {figure.name: figure.spec for figure in figures},
        "light": theme(dark=False),
        "dark": theme(dark=True),
    }
    return Template(_asset("page.html")).substitute(
        title=escape(f"{record['name']} - bkray report"),
        style=_asset("page.css"),
        body=f"<main>\n{body}\n</main>",
        figures=json_in_script(content),
        vega=script_in_script(javascript()),
        script=_asset("page.js"),
    )


def _body(
    record: Mapping[str, Any],
    rows: Sequence[Row],
    objectives: Sequence[Objective],
    found: Sequence[Configuration],
    figures: Sequence[Figure],
    findings: Findings,
) -> str:
    several = any(len(one.rows) > 1 for one in found)
    outcomes = [figure for figure in figures if figure.name == "outcomes"]
    climbed = [one for one in figures if one.name.startswith((PREFIX, mismatch_plots.PREFIX))]
    others = [figure for figure in figures if figure not in (*outcomes, *climbed)]
    sections = [
        _header(record, rows),
        _verdict(rows, objectives, found if several else ()),
        _configurations(found, objectives) if several else "",
        comparison_section(findings.compared),
        _ladder(findings.ladder, climbed),
        mismatch_page.section(findings.mismatch, map(_figure, climbed)),
        generator_section(findings.generator),
        f"<h2>Leaderboard</h2>\n{_leaderboard(rows, objectives, found)}",
        combined_section(rows),
        parts_section(rows),
        "<h2>Figures</h2>" if others else "",
        *map(_figure, others),
        "<h2>Outcomes</h2>",
        *map(_figure, outcomes),
        _reasons(rows),
        _files(figures, findings.ladder),
    ]
    return "\n".join(sections)


def _header(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    pinned = record.get("overrides", {})
    settings = {"data.corpus": DataConfig().corpus, **record.get("base", {}), **pinned}
    data = settings.get("data.embeddings", settings["data.corpus"])
    counts = Counter(map(_outcome, rows))
    outcomes = [f"{counts[name]} {name}" for name in (*OUTCOMES, "running") if counts[name]]
    known = {
        "trials": ", ".join(outcomes),
        "objectives": ", ".join(f"{o['direction']} {o['column']}" for o in record["objectives"]),
        "swept": ", ".join(record["swept"]),
        "preset": record.get("preset", ""),
        "sampler": record.get("sampler", ""),
        "overrides": " ".join(f"{path}={value}" for path, value in pinned.items()),
        "data": f"{data} {record.get('data_hash', '')[:12]}",
        "started": record.get("started", ""),
        "git": _commit(record.get("git")),
        "hardware": _hardware(record.get("hardware")),
        "versions": ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items()),
    }
    overview = escape(record.get("overview", ""))
    return f"<h1>{escape(record['name'])}</h1>\n<p>{overview}</p>\n{facts(known)}"


def _commit(git: Mapping[str, Any] | None) -> str:
    return f"{git['sha'][:12]}{' with changes' if git['dirty'] else ''}" if git else ""


def _hardware(machine: Mapping[str, Any] | None) -> str:
    if not machine:
        return ""
    return f"{machine['cpu_cores']} cores, {machine['memory_mib']:,} MiB, {machine['platform']}"


def _verdict(
    rows: Sequence[Row], objectives: Sequence[Objective], found: Sequence[Configuration]
) -> str:
    """Return the sentence about trials, or about configurations where they have several seeds."""
    if found:
        said = front_verdict([one.row for one in found], objectives, what="configurations")
    else:
        said = front_verdict(rows, objectives)
    return f'<p class="verdict">{escape(said)}</p>'


def _leaderboard(
    rows: Sequence[Row], objectives: Sequence[Objective], found: Sequence[Configuration]
) -> str:
    if not rows:
        return "<p>No trial has started.</p>"
    ranked = leaderboard(rows, objectives)
    ahead = front_trials(found, objectives)
    knobs = [name for name in ranked[0] if name.startswith("param/")]
    first = list(dict.fromkeys([*(o.column for o in objectives), *knobs, *_SHOWN]))
    rest = [name for name in COLUMNS if name not in (*first, "outcome")]
    columns = [
        Column(name="rank", values=range(1, len(ranked) + 1)),
        Column(name="trial", values=[label(row) for row in ranked]),
        Column(name="kind", values=[kind(row) for row in ranked]),
        Column(name="front", values=["yes" if r["trial_id"] in ahead else "" for r in ranked]),
        Column(name="outcome", values=[_outcome(row) for row in ranked]),
        *(_column(ranked, name, more=False) for name in first),
        *(_column(ranked, name, more=True) for name in rest),
    ]
    return table("leaderboard", [c for c in columns if any(v is not None for v in c.values)])


def _column(rows: Sequence[Row], name: str, *, more: bool) -> Column:
    values = [row[name] for row in rows]
    title = name.removeprefix("param/")
    return Column(name=name, values=values, title=title, more=more, wrap=name == "stop_reason")


def _configurations(found: Sequence[Configuration], objectives: Sequence[Objective]) -> str:
    columns = [
        Column(name="rank", values=range(1, len(found) + 1)),
        Column(name="configuration", values=[one.label for one in found]),
        Column(name="kind", values=[one.kind for one in found]),
        Column(name="outcome", values=[one.outcome for one in found]),
        Column(name="n", values=[one.n for one in found]),
        Column(name="n_diverged", values=[one.n_diverged for one in found]),
    ]
    for name in dict.fromkeys([*(o.column for o in objectives), *_SHOWN]):
        means = [one.mean(name) for one in found]
        if any(means):
            columns += [
                Column(name=name, values=[mean and mean.mean for mean in means]),
                Column(name=f"{name}/low", title="95% from", values=[m and m.low for m in means]),
                Column(name=f"{name}/high", title="to", values=[m and m.high for m in means]),
            ]
    note = (
        "Means over the n seeds that ended, with 95% intervals by the bootstrap, which few seeds "
        "make too narrow. A configuration with a seed that is not ok has no mean."
    )
    head = f'<h2>Configurations</h2>\n<p class="soft">{note}</p>'
    return f"{head}\n{table('configurations', columns)}"


def _ladder(known: Ladder | None, figures: Sequence[Figure]) -> str:
    if known is None:
        return ""
    found = ladder_words.columns(known).items()
    columns = [Column(name=name, values=values) for name, values in found]
    said = "".join(f"<li>{escape(words)}</li>" for words in ladder_words.sentences(known))
    shown = ["<h2>Length ladder</h2>", table("ladder", columns), f"<ul>{said}</ul>"]
    if kept := [Column(name=name, values=v) for name, v in promises.columns(known).items()]:
        shown += ["<h3>The guides' promises</h3>", table("promises", kept)]
    return "\n".join([*shown, *map(_figure, figures)])


def _figure(figure: Figure) -> str:
    name, title = escape(figure.name), escape(figure.title)
    height = figure.spec["height"] + 60  # room for axes and legend, so that nothing jumps
    return (
        f'<figure><h3>{title}</h3><div class="canvas"><div class="plot" id="plot-{name}" '
        f'style="min-height:{height}px" role="img" aria-label="{title}"></div></div>'
        f"<figcaption>{escape(figure.note)}</figcaption></figure>"
    )


def _reasons(rows: Sequence[Row]) -> str:
    ended = [row for row in rows if row["outcome"] != "ok"]
    if not ended:
        return "<p>Every trial ended as ok.</p>" if rows else ""
    columns = [
        Column(name="trial", values=[label(row) for row in ended]),
        Column(name="outcome", values=[_outcome(row) for row in ended]),
        Column(name="steps", values=[row["steps"] for row in ended]),
        Column(name="stop_reason", values=[row["stop_reason"] for row in ended], wrap=True),
        Column(name="trial_id", values=[row["trial_id"] for row in ended]),
    ]
    return table("reasons", columns)


def _files(figures: Iterable[Figure], ladder: Ladder | None) -> str:
    paths = ["trials.parquet", "trials.csv", *([FILE] if ladder is not None else [])]
    paths += [f"figures/{one.name}.png" for one in figures]
    links = (f'<a href="{quote(path)}">{escape(path)}</a>' for path in paths)
    return f'<h2>Files</h2>\n<p class="soft">Beside this page: {", ".join(links)}</p>'


def _outcome(row: Row) -> str:
    return "running" if _runs(row) else str(row["outcome"])


def _runs(row: Row) -> bool:
    return row["outcome"] == "interrupted" and row["stop_reason"] is None


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
