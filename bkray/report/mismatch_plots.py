"""The figures of length mismatch: loss by position, a figure for each model."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from bkray.report.cell_rows import RETRAIN
from bkray.report.mismatch import Cell
from bkray.report.vega import GREY, NAMED, Figure, chart, figure, tooltip

PREFIX = "mismatch_"
_BUCKET = "loss_nats_to_"


def mismatch_figures(found: Sequence[Cell]) -> list[Figure]:
    """Return what each model loses by position, from the shortest train length to the next."""
    if not found:
        return []
    shortest = min(one.rows[0].n_train for one in found)
    longer = [one.rows[0].n_eval for one in found if one.rows[0].n_eval > shortest]
    n_eval = min(longer, default=shortest)
    models = dict.fromkeys(one.rows[0].model for one in found)
    drawn = [_figure([o for o in found if _is_of(o, m, shortest, n_eval)], m) for m in models]
    return [one for one in drawn if one is not None]


def _is_of(one: Cell, model: str, n_train: int, n_eval: int) -> bool:
    row = one.rows[0]
    at = row.model == model and row.n_eval == n_eval
    return at and (row.n_train == n_train or row.strategy == RETRAIN)


def _figure(found: Sequence[Cell], model: str) -> Figure | None:
    points = [point for one in found for point in _points(one)]
    if not points:
        return None
    n_train = min(one.rows[0].n_train for one in found)
    strategies = list(dict.fromkeys(point["strategy"] for point in points))
    x = alt.X("x:Q", title="position in the row (tokens)", scale=alt.Scale(zero=False))
    y = alt.Y("y:Q", title="loss (nats per token)", scale=alt.Scale(zero=False, padding=18))
    colour = alt.Color(
        "strategy:N", title=None, scale=alt.Scale(domain=strategies, range=list(NAMED))
    )
    words = tooltip("strategy", x="position", y="loss")
    lines = chart(points).mark_line(point=True, opacity=0.9)
    border = chart([{"x": n_train}]).mark_rule(strokeDash=[4, 3], color=GREY)
    layers: list[alt.SchemaBase] = [
        border.encode(x),
        lines.encode(x, y, color=colour, tooltip=words),
    ]
    note = (
        "Means over seeds, each of an eighth of the row that ends at the position; all strategies "
        f"on the same tokens. Dashed is the train length, {n_train:,}."
    )
    name = f"{PREFIX}{model.replace(' ', '_')}"
    return figure(name, f"Loss by position, {model}", note, layers, height=300)


def _points(one: Cell) -> list[dict[str, Any]]:
    named = [name for name in one.rows[0].metrics if name.startswith(_BUCKET)]
    return [
        {"x": int(name.removeprefix(_BUCKET)), "y": mean, "strategy": one.rows[0].strategy}
        for name in named
        if (mean := one.mean(name)) is not None
    ]
