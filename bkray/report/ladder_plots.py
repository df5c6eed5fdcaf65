"""The figures of a ladder: each quantity against length, with what was fitted to it."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from bkray.errors import DataError
from bkray.report import trends
from bkray.report.ladder import Ladder
from bkray.report.ranking import brief
from bkray.report.rung_rows import Line
from bkray.report.trends import Trend
from bkray.report.vega import GREY, NAMED, RED, Figure, chart, figure, tooltip

PREFIX = "ladder_"
_DRAWN = {
    "loss": ("loss", "Loss by length", "validation loss (nats per token)"),
    "gradient_norm": ("gradient_norm", "Gradient norm by length", "gradient norm, mean"),
    "spikes": ("spike_count", "Spikes by length", "spikes"),
    "memory": ("memory_gb", "Peak memory by length", "peak memory (GB of 2^30 bytes)"),
    "tokens_per_second": ("tokens_per_second", "Tokens per second by length", "tokens per second"),
}
"""Name of a figure to its metric, its title and that of its axis."""
_FITTED = {"loss": "loss", "memory_gb": "memory_gb", "tokens_per_second": "seconds_per_token"}
_NOTES = {
    "memory_gb": " The peak is that of the whole process since its trial began.",
    "gradient_norm": " Bars are the mean of the standard deviations, over the steps of a rung.",
}
_POINTS = 40
"""Of a fitted curve."""


def ladder_figures(known: Ladder | None) -> list[Figure]:
    """Return a figure for each quantity that some length has a number for."""
    if known is None:
        return []
    drawn = [_figure(known, name, *words) for name, words in _DRAWN.items()]
    return [one for one in drawn if one is not None]


def _figure(known: Ladder, name: str, metric: str, title: str, axis: str) -> Figure | None:
    points = [p for line in _led(known) if (p := _point(line, metric)) is not None]
    if not points:
        return None
    trend = next((t for t in known.trends if t.quantity == _FITTED.get(metric)), None)
    curve = _curve(trend, known.main) if trend is not None else []
    reach = [end for point in points for end in (point["low"], point["high"])]
    x, y = _length([line.n_seq for line in _led(known)]), _value(reach, axis)
    words = tooltip("label", "outcome", "seeds", x="length", y=axis)
    lost = [point for point in points if point["outcome"] != "ok"]
    bars = chart(points).mark_rule(opacity=0.55, strokeWidth=1.5)
    layers: list[alt.SchemaBase] = [
        bars.encode(x, y=alt.Y("low:Q"), y2="high", color=_colour(points)),
        chart(points)
        .mark_circle(size=90, opacity=0.9)
        .encode(x, y, color=_colour(points), tooltip=words),
    ]
    if curve:
        dashed = chart(curve).mark_line(strokeDash=[4, 3], color=GREY)
        layers.insert(0, dashed.encode(x, y))
    if lost:
        cross = chart(lost).mark_point(shape="cross", angle=45, size=170, color=RED)
        layers.append(cross.encode(x, y, tooltip=words))
    layers += _fallen(_led(known), x) if metric == "loss" else []
    return figure(
        f"{PREFIX}{name}", title, _note(known, metric, trend, bool(curve)), layers, height=300
    )


def _led(known: Ladder) -> list[Line]:
    """Return the lines without those that only have the monitor more than one of the others."""
    return [line for line in known.lines if not line.is_beside]


def _point(line: Line, metric: str) -> dict[str, Any] | None:
    value = line.mean(metric)
    if value is None:
        return None
    seen = [row.metrics[metric] for row in line.rows if metric in row.metrics]
    spread = line.mean("gradient_norm_std") if metric == "gradient_norm" else None
    low, high = (min(seen), max(seen)) if spread is None else (value - spread, value + spread)
    return {
        "x": line.n_seq,
        "y": value,
        "low": low if low > 0 or metric == "spike_count" else value,
        "high": high,
        "lr": line.learning_rate,
        "rate": brief(line.learning_rate),
        "label": f"{line.n_seq:,} tokens, learning rate {brief(line.learning_rate)}",
        "outcome": line.outcome,
        "seeds": len(line.rows),
    }


def _curve(trend: Trend, main: Sequence[Line]) -> list[dict[str, float]]:
    """Return points of the fit between the shortest and the longest length."""
    if trend.fit is None:
        return []
    low, high = math.log(main[0].n_seq), math.log(main[-1].n_seq)
    curve = []
    for i in range(_POINTS):
        n = math.exp(low + (high - low) * i / (_POINTS - 1))
        try:
            value = trend.fit.predict(n).mean
        except DataError:  # a straight line may fall below 0
            continue
        per_second = trend.quantity == "seconds_per_token"
        curve.append({"x": n, "y": 1 / value if per_second else value})
    return curve


def _fallen(lines: Sequence[Line], x: alt.X) -> list[alt.SchemaBase]:
    """Return marks at the top edge at lengths that diverged, and so have no loss."""
    fallen = [
        {"x": line.n_seq, "rate": brief(line.learning_rate), "outcome": line.outcome}
        for line in lines
        if line.outcome == "diverged"
    ]
    words = tooltip("rate", "outcome", x="length")
    mark = chart(fallen).mark_point(
        shape="triangle-down", size=90, filled=True, color=RED, yOffset=6
    )
    return [mark.encode(x, y=alt.value(0), tooltip=words)] if fallen else []


def _length(lengths: Sequence[int]) -> alt.X:
    ticks = alt.Axis(values=sorted(set(lengths)), format=",d", labelAngle=0)
    scale = alt.Scale(type="log", nice=False, padding=18)
    return alt.X("x:Q", title="sequence length (tokens)", scale=scale, axis=ticks)


def _value(reach: Sequence[float], title: str) -> alt.Y:
    if min(reach) > 0:
        scale = alt.Scale(type="log", padding=18, nice=False)
        return alt.Y("y:Q", title=title, scale=scale, axis=alt.Axis(format="~g"))
    top = alt.Scale(domain=[0, max(reach) or 1], nice=False)
    return alt.Y("y:Q", title=title, scale=top)


def _colour(points: Sequence[dict[str, Any]]) -> alt.Color:
    rates = list(dict.fromkeys(p["rate"] for p in sorted(points, key=lambda p: float(p["lr"]))))
    several = len(rates) > 1
    return alt.Color(
        "rate:N",
        title="learning rate" if several else None,
        scale=alt.Scale(domain=rates, range=list(NAMED)),
        legend=alt.Legend() if several else None,
    )


def _note(known: Ladder, metric: str, trend: Trend | None, drawn: bool) -> str:
    note = "Points are means over seeds."
    note += "" if metric == "gradient_norm" else " Bars reach from seed to seed."
    note += _NOTES.get(metric, "")
    note += " Red crosses did not end as ok." if metric != "loss" else ""
    if metric == "loss" and any(line.outcome == "diverged" for line in _led(known)):
        note += " A triangle marks a length that diverged."
    if trend is not None:
        note += " Dashed is what was fitted." if drawn else ""
        note += f" {trends.said(trend)}"
    return note
