"""Vega-Lite: what all charts share, their two themes, and how they become PNG and script."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from bkray.sweep import Objective

WIDTH = 720
"""Points; a page that knows its own width says so instead."""
RED, GREY = "#d64550", "#7b8794"
KINDS = {"ACT": "#3b7ddd", "length": "#2f9e8f", "dense": "#e0812f", "other": GREY}
"""Colour by ``ranking.kind``; all colours hold on white and on black."""
NAMED = ("#3b7ddd", "#e0812f", "#3d9a6c", "#a04fb8", "#c99a2e", "#2aa6b5", "#b0577f", "#8a6d4b")
"""Colours of what is few enough to be told apart."""

_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
_DECADES = 20
"""From this ratio of the greatest to the least value on an axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class Figure:
    """``name`` is that of the PNG without its suffix, ``note`` says what is shown and left out.

    ``spec`` is plain JSON without NaN, and has no colour for text and background: see ``theme``.
    """

    name: str
    title: str
    note: str
    spec: dict[str, Any]


def figure(
    name: str,
    title: str,
    note: str,
    layers: Sequence[alt.SchemaBase],
    *,
    height: int,
    clip: bool = False,
) -> Figure:
    """Return the layers, first at the bottom, as a figure of ``height`` points."""
    spec = alt.LayerChart(layer=layers).properties(width=WIDTH, height=height).to_dict()
    del spec["config"]  # that is the theme's
    return Figure(name, title, note, spec)


def chart(rows: Iterable[Mapping[str, Any]]) -> alt.Chart:
    """Return a chart of rows without a mark; a number that is not finite becomes ``None``."""
    return alt.Chart(
        alt.InlineData(values=[{k: _finite(v) for k, v in row.items()} for row in rows])
    )


def tooltip(*fields: str, **titles: str) -> list[alt.Tooltip]:
    """Return tooltips of ``fields``, and of further ones under a title of their own."""
    plain = [alt.Tooltip(field=field, type="nominal", title=field) for field in fields]
    named = {
        field: alt.Tooltip(field=field, type="nominal", title=t) for field, t in titles.items()
    }
    return [*plain, *named.values()]


def by_kind(kinds: Iterable[str]) -> alt.Color:
    """Return colours for the kinds that there are."""
    known = set(kinds)
    domain = [kind for kind in KINDS if kind in known]
    scale = alt.Scale(domain=domain, range=[KINDS[kind] for kind in domain])
    return alt.Color("kind:N", title=None, scale=scale, legend=alt.Legend(symbolOpacity=1))


def directed(objective: Objective) -> str:
    """Return an objective with which way is better."""
    better = "lower" if objective.direction == "minimize" else "higher"
    return f"{objective.column} ({better} is better)"


def fitted(values: Iterable[float]) -> alt.Scale:
    """Return a scale around the values, logarithmic if they reach over decades."""
    if spans_decades(list(values)):
        return alt.Scale(type="log", padding=18, nice=False)
    return alt.Scale(zero=False, padding=18, nice=False)


def spans_decades(values: Sequence[float]) -> bool:
    """Say whether an axis of these values, at least one, should be logarithmic."""
    return min(values) > 0 and max(values) >= _DECADES * min(values)


def png(figure: Figure) -> bytes:
    """Return the figure in the light theme on white, two pixels to the point."""
    config = theme(dark=False, background="white")
    return vl_convert.vegalite_to_png(figure.spec, vl_version=_VEGA_LITE, scale=2, config=config)


def javascript() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that needs no network."""
    bundle: str = vl_convert.javascript_bundle(vl_version=_VEGA_LITE)  # type: ignore[call-arg]
    return bundle  # the stub above wants a snippet, which has a default


def theme(*, dark: bool, background: str = "transparent") -> dict[str, Any]:
    """Return the Vega-Lite configuration for a light or a dark page."""
    ink, soft, grid = (
        ("#e6e9ef", "#a3acba", "#303744") if dark else ("#20242c", "#586171", "#e4e7ec")
    )
    words = {"labelColor": soft, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 12}
    lines = {"gridColor": grid, "domainColor": soft, "tickColor": soft}
    wide = {"titleLimit": 400, "labelLimit": 340}
    return {
        "background": background,
        "padding": 8,
        "font": "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "axis": {
            **words,
            **lines,
            "titleFontWeight": 500,
            "titlePadding": 10,
            "labelLimit": 340,
            "tickCount": 7,
        },
        "legend": {**words, **wide, "orient": "top", "gradientLength": 240},
        "text": {"color": ink},
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
