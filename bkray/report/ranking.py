"""Who won: leaderboard, Pareto front, and ACT against plain depth. Pure functions of rows."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from bkray.columns import COLUMNS
from bkray.errors import ConfigError
from bkray.events import OUTCOMES
from bkray.report.tables import Row, is_dense
from bkray.sinks.sink import knob_words
from bkray.sweep import Objective


def leaderboard(rows: Iterable[Row], objectives: Sequence[Objective]) -> list[Row]:
    """Return the rows best first: by outcome (``ok`` before all others), then by first objective.

    Within an outcome, a value that is missing or not finite comes last; equals go by trial id.
    """

    def place(row: Row) -> tuple[int, float, str]:
        (cost,) = _costs(row, objectives[:1]) or (math.inf,)
        return OUTCOMES.index(row["outcome"]), cost, row["trial_id"]

    return sorted(rows, key=place)


def pareto_front(rows: Iterable[Row], objectives: Sequence[Objective]) -> list[Row]:
    """Return the rows that no other row beats, in the order of the first objective.

    One row beats another if it is at least as good in every objective and better in one, so equals
    stay together. Only rows with outcome ``ok`` and a finite value in every objective take part.
    """
    front: list[tuple[tuple[float, ...], Row]] = []
    # whatever beats a row sorts before it, and what is beaten only beats what its victor beats too
    for costs, row in sorted(
        _contestants(rows, objectives), key=lambda c: (c[0], c[1]["trial_id"])
    ):
        if not any(other != costs and _as_good(other, costs) for other, _ in front):
            front.append((costs, row))
    return [row for _, row in front]


def front_verdict(
    rows: Sequence[Row], objectives: Sequence[Objective], *, what: str = "trials"
) -> str:
    """Return in words how ACT fares against plain depth: on the front, and row by row.

    It is learned length that is told of where some rows have it and none has ACT. ``what`` says
    what the rows are: ``trials`` or ``configurations``.
    """
    kinds = [kind(row) for row in pareto_front(rows, objectives)]
    known = {kind(row) for row in rows}
    ours = "length" if "length" in known and "ACT" not in known else "ACT"
    finished = _contestants(rows, objectives)
    dense = [costs for costs, row in finished if kind(row) == "dense"]
    adaptive = [(costs, label(row)) for costs, row in finished if kind(row) == ours]
    said = (
        f"Points on the Pareto front: {len(kinds)}, of them {ours} {kinds.count(ours)}, "
        f"dense {kinds.count('dense')}."
    )
    if not adaptive and not dense:
        return f"Points on the Pareto front: {len(kinds)}."
    if not adaptive:
        return f"{said} No {ours} {what[:-1]} finished."
    if not dense:
        return f"{said} No dense arm finished, so {ours} has no rival here."
    beaten = [any(_as_good(rival, costs) for rival in dense) for costs, _ in adaptive]
    matched = [name for (_, name), lost in zip(adaptive, beaten, strict=True) if lost]
    free = [name for (_, name), lost in zip(adaptive, beaten, strict=True) if not lost]
    return (
        f"{said} {ours} {what} finished: {len(adaptive)}. Matched or beaten by some dense arm in "
        f"every objective: {_listed(matched)}. Not so: {_listed(free)}."
    )


def label(row: Row) -> str:
    """Return what tells a trial from the others: its arm, or its swept knobs, and its seed.

    The row of a configuration has no seed, and its label none.
    """
    knobs = {
        name.removeprefix("param/"): value
        for name, value in row.items()
        if name.startswith("param/") and value is not None
    }
    name = row["arm"] or knob_words(knobs) or row["trial_id"]
    return name if row["seed"] is None else f"{name} seed={row['seed']}"


def kind(row: Row) -> str:
    """Return ``dense``, ``ACT`` (with learned length as well), ``length`` or ``other``."""
    if is_dense(row):
        return "dense"
    for name, columns in _MARKS.items():
        if any(row.get(column) is not None for column in columns):
            return name
    return "other"


_MARKS = {
    "ACT": ("ponder_cost", "param/model.act_threshold"),
    "length": ("avg_predicted_length", "param/model.length_penalty"),
}
"""Columns that only trials of a kind have."""


def _costs(row: Row, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    """Return one number per objective, less is better, or ``None`` if one is not finite."""
    for objective in objectives:
        if objective.column not in row:
            raise ConfigError(
                f"objective {objective.column!r} is no column of trials.parquet; "
                f"allowed: {', '.join(COLUMNS)}"
            )
    values = [row[objective.column] for objective in objectives]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    signs = [1 if objective.direction == "minimize" else -1 for objective in objectives]
    return tuple(sign * value for sign, value in zip(signs, values, strict=True))


def _contestants(
    rows: Iterable[Row], objectives: Sequence[Objective]
) -> list[tuple[tuple[float, ...], Row]]:
    with_costs = ((_costs(row, objectives), row) for row in rows if row["outcome"] == "ok")
    return [(costs, row) for costs, row in with_costs if costs is not None]


def _as_good(costs: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return all(cost <= other for cost, other in zip(costs, others, strict=True))


def brief(value: Any) -> str:
    """Return a number in five digits, a large one in all of its digits before the point, and
    ``-`` for what does not apply."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 99_999.5 <= abs(value) < _PLAIN else f"{value:,.5g}"


_PLAIN = 1e12
"""Numbers from here on are written as powers of ten."""


def _listed(names: Sequence[str]) -> str:
    """Return how many, and the first of them by name."""
    shown = [*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])]
    return f"{len(names)} ({'; '.join(shown)})" if names else "0"


_NAMED = 12
"""A verdict names so many trials; the tables have them all."""
