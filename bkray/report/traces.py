"""Numbers over the steps of one trial, one panel below the other, with marks across them.

Written as plain Vega-Lite: every trial of a sweep has such a figure, and checking what is always
alike would take longer than drawing it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bkray.report.vega import GREY, KINDS, RED, WIDTH, Figure, spans_decades

POINTS = 120
"""Windows into which a longer trace is cut; of each the greatest value is shown."""

_HEIGHT, _ROW_HEIGHT = 130, 18
_MARKS = {
    "spike, doubled": "#e0812f",
    "spike, robust": "#c99a2e",
    "masked": GREY,
    "rewound": "#3d9a6c",
    "diverged": RED,
}
_MOST_NAMED = 24
"""Traces in a panel up to which a legend names them."""

Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trace:
    """Values by optimizer step; ``None`` or a number that is not finite leaves a gap."""

    steps: Sequence[int]
    values: Sequence[float | None]


class Mark(NamedTuple):
    """What happened at a step, one of the words that have a colour."""

    what: str
    step: int


def traces(
    name: str, title: str, panels: Mapping[str, Mapping[str, Trace]], marks: Sequence[Mark]
) -> Figure:
    """Return the panels that have something to show, by their titles; traces go by name."""
    known = {
        axis: {label: trace for label, trace in drawn.items() if any(_finite(trace.values))}
        for axis, drawn in panels.items()
    }
    marked = [mark._asdict() for mark in dict.fromkeys(marks)]
    drawn = [_panel(axis, some, marked) for axis, some in known.items() if some]
    spec: Spec = {
        "title": {"text": title, "anchor": "start", "fontSize": 13, "limit": WIDTH},
        "vconcat": [*drawn, *([_strip(marked)] if marked else [])],
        "resolve": {"scale": {"x": "shared"}},
        "spacing": 8,
    }
    if not spec["vconcat"]:
        spec |= {"vconcat": [{"mark": "text", "encoding": {"text": {"value": "no step"}}}]}
    spec["vconcat"][-1]["encoding"]["x"]["axis"] = {"title": "step"}
    note = f"Of a trace with more than {POINTS} steps the greatest value of each window is shown."
    return Figure(name, title, note, spec)


def _panel(axis: str, drawn: Mapping[str, Trace], marks: list[Spec]) -> Spec:
    data: list[Spec] = [
        {"name": label, "step": step, "value": value}
        for label, trace in drawn.items()
        for step, value in _peaks(trace)
    ]
    log = spans_decades(list(_finite(row["value"] for row in data)))
    y: Spec = {"field": "value", "type": "quantitative", "title": axis}
    y["scale"] = {"type": "log", "nice": False} if log else {"zero": False}
    legend = {"columns": 8, "symbolType": "stroke"} if 1 < len(drawn) <= _MOST_NAMED else None
    palette = {"scheme": "tableau20"} if len(drawn) > 1 else {"range": [KINDS["ACT"]]}
    colour = {"field": "name", "type": "nominal", "sort": list(drawn), "title": None}
    lines = {
        "data": {"values": data},
        "mark": {"type": "line", "strokeWidth": 1.2},
        "encoding": {"y": y, "color": {**colour, "scale": palette, "legend": legend}},
    }
    rules = {
        "data": {"values": marks},
        "mark": {"type": "rule", "opacity": 0.5},
        "encoding": {"color": _mark_colour()},
    }
    return {
        "width": WIDTH,
        "height": _HEIGHT,
        "encoding": {"x": _x()},
        "layer": [rules, lines],
        "resolve": {"scale": {"color": "independent"}},
    }


def _strip(marks: list[Spec]) -> Spec:
    """Return a line of ticks for each kind of mark, which is their legend as well."""
    names = [name for name in _MARKS if any(mark["what"] == name for mark in marks)]
    y = {"field": "what", "type": "nominal", "sort": names, "title": None}
    return {
        "width": WIDTH,
        "height": _ROW_HEIGHT * len(names),
        "data": {"values": marks},
        "mark": {"type": "tick", "thickness": 2},
        "encoding": {"x": _x(), "y": y, "color": _mark_colour()},
    }


def _x() -> Spec:
    plain = {"zero": False, "nice": False}
    axis = {"title": None, "labels": False, "ticks": False}
    return {"field": "step", "type": "quantitative", "scale": plain, "axis": axis}


def _mark_colour() -> Spec:
    scale = {"domain": list(_MARKS), "range": list(_MARKS.values())}
    return {"field": "what", "type": "nominal", "scale": scale, "legend": None}


def _peaks(trace: Trace) -> list[tuple[int, float | None]]:
    """Return of each of at most ``POINTS`` windows the greatest value, a gap before all others."""
    size = math.ceil(len(trace.steps) / POINTS)
    known = [v if v is not None and math.isfinite(v) else None for v in trace.values]
    points = list(zip(trace.steps, known, strict=True))
    return [max(points[i : i + size], key=_height) for i in range(0, len(points), size)]


def _height(point: tuple[int, float | None]) -> float:
    return math.inf if point[1] is None else point[1]


def _finite(values: Iterable[float | None]) -> Iterable[float]:
    return (value for value in values if value is not None and math.isfinite(value))
