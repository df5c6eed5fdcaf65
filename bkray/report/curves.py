"""Learning curves: loss against step, trial by trial."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import altair as alt

from bkray.report.history import N_BEST, POINTS, Curve, History
from bkray.report.ranking import kind, label
from bkray.report.vega import KINDS, NAMED, RED, Figure, chart, figure, tooltip

Which = Literal["training", "validation"]

_PLACES = ("other", "diverged", "strong")
"""From the bottom to the top."""

Drawn = Sequence[tuple[History, Curve]]


def learning_curves(histories: Sequence[History], which: Which) -> Figure | None:
    """Return loss against step, trial by trial; ``None`` if no loss is finite.

    The axis is that of the trials that did not diverge: one that blew up would flatten them.
    """
    drawn = [(history, getattr(history, which)) for history in histories]
    drawn = [(h, curve) for h, curve in drawn if any(loss is not None for loss in curve.losses)]
    if not drawn:
        return None
    drawn.sort(key=lambda pair: (_PLACES.index(pair[0].place), -pair[0].rank))
    low, high = _reach(drawn)
    y = alt.Y(
        "losses:Q",
        title=f"{which} loss (nats)",
        scale=alt.Scale(domain=[low, high], nice=False, zero=False),
    )
    data = _data(drawn, high)
    base = chart(data).transform_flatten(["steps", "losses"])
    base = base.encode(alt.X("steps:Q", title="step"), y, color=_colours(data), detail="rank:N")
    layers = [_curves(base, data, which), *_falls(histories)]
    title, note = f"{which.capitalize()} loss", _note(histories, drawn)
    return figure(f"{which}_loss", title, note, layers, height=360)


def _curves(base: alt.Chart, data: Sequence[dict[str, Any]], which: Which) -> alt.LayerChart:
    """Return lines and dots; the curve whose dot is under the pointer stands out.

    A dot reaches further for the pointer than for the eye. Vega-Lite 6.4 has a mode for the
    nearest dot, but its tooltips leave texts empty.
    """
    over: dict[str, Any] = {"on": "pointerover", "clear": "pointerout"}
    hover = alt.selection_point(name="hover", fields=["rank"], empty=False, **over)
    # The opacity of whole marks and a clip of every line would slow the PNG of many trials down.
    faint, pale = (
        _by_place(channel, 0.3, 0.85, 0.95) for channel in (alt.StrokeOpacity, alt.FillOpacity)
    )
    bold = alt.condition(hover, alt.value(3.5), _by_place(alt.StrokeWidth, 0.8, 1.5, 1.8))
    lines = base.encode(strokeWidth=bold, strokeOpacity=faint)
    inside = lines.mark_line().transform_filter("!datum.beyond")
    beyond = lines.mark_line(clip=True).transform_filter("datum.beyond")
    seen = pale if which == "validation" else alt.condition(hover, alt.value(1), alt.value(0))
    reach: dict[str, Any] = {"stroke": "transparent", "strokeWidth": 10}
    dots = base.mark_circle(size=24, opacity=1, clip=True, **reach).encode(
        fillOpacity=seen,
        tooltip=tooltip("rank", "label", "outcome", steps="step", losses="loss (nats)"),
    )
    some_beyond = any(row["beyond"] for row in data)
    return alt.LayerChart(layer=[inside, *[beyond] * some_beyond, dots.add_params(hover)])


def _data(drawn: Drawn, high: float) -> list[dict[str, Any]]:
    few = sum(history.place != "diverged" for history, _ in drawn) <= len(NAMED)
    return [
        {
            "rank": history.rank,
            "label": label(history.row),
            "outcome": history.row["outcome"],
            "place": history.place,
            "group": _group(history, few),
            "beyond": any(loss is not None and loss > high for loss in curve.losses),
            "steps": curve.steps,
            "losses": curve.losses,
        }
        for history, curve in drawn
    ]


def _group(history: History, few: bool) -> str:
    """Return by what a curve is coloured: trial by trial where they are few, else by kind."""
    if history.place == "diverged":
        return "diverged"
    return label(history.row) if few else kind(history.row)


def _colours(data: Sequence[dict[str, Any]]) -> alt.Color:
    groups = dict.fromkeys(row["group"] for row in sorted(data, key=lambda row: row["rank"]))
    names = [name for name in groups if name != "diverged"]
    known = {**dict(zip(names, NAMED, strict=False)), **KINDS, "diverged": RED}
    domain = [*names, *(["diverged"] if "diverged" in groups else [])]
    scale = alt.Scale(domain=domain, range=[known[name] for name in domain])
    legend = alt.Legend(columns=2 if len(domain) > len(KINDS) + 1 else 0, symbolType="stroke")
    return alt.Color("group:N", title=None, scale=scale, legend=legend)


def _by_place(channel: Any, *sizes: float) -> Any:
    scale = alt.Scale(domain=list(_PLACES), range=list(sizes))
    return channel("place:O", legend=None, scale=scale)


def _reach(drawn: Drawn) -> tuple[float, float]:
    """Return the ends of the axis of losses."""
    sound = [curve for history, curve in drawn if history.place != "diverged"]
    curves = sound or [curve for _, curve in drawn]
    losses = [loss for curve in curves for loss in curve.losses if loss is not None]
    low, high = min(losses), max(losses)
    room = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    return low - room, high + room


def _falls(histories: Iterable[History]) -> list[alt.Chart]:
    """Return marks at the top edge at each step where a trial diverged."""
    fallen = [
        {
            "rank": history.rank,
            "label": label(history.row),
            "reason": history.row["stop_reason"],
            "step": history.diverged_at,
        }
        for history in histories
        if history.diverged_at is not None
    ]
    words = tooltip("rank", "label", "reason", "step")
    mark = chart(fallen).mark_point(
        shape="triangle-down", size=90, filled=True, color=RED, yOffset=6
    )
    return [mark.encode(x="step:Q", y=alt.value(0), tooltip=words)] if fallen else []


def _note(histories: Sequence[History], drawn: Drawn) -> str:
    n = {place: sum(history.place == place for history, _ in drawn) for place in _PLACES}
    words = {
        "strong": f"strong: {n['strong']} of the best {N_BEST} and the arms",
        "diverged": f"red: {n['diverged']} diverged",
        "other": f"thin: {n['other']} others",
    }
    limits = {place: POINTS[place] for place in words if n[place]}
    note = "; ".join(words[place] for place in limits).capitalize()
    note += f". Of curves longer than {', '.join(map(str, limits.values()))} steps"
    note += f"{', in turn,' if len(limits) > 1 else ''} the last step of each of so many windows"
    note += " is shown, nothing is averaged."
    if any(history.diverged_at is not None for history in histories):
        note += " A triangle marks a step at which a trial diverged; what blew up leaves the axis."
    if len(drawn) < len(histories):
        note += f" Without a finite loss, and so without a curve: {len(histories) - len(drawn)}."
    return note
