"""Tables of a sweep, from its files alone: a row per trial, the leaderboard, the Pareto front.

A row is a dict of ``COLUMNS`` and one ``param/<config path>`` per swept knob; ``None`` means that
the column does not apply, or that the trial has not got there yet.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bkray import atomic
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.events import OUTCOMES
from bkray.sweep import Objective

Row = dict[str, Any]

_TEXTS = ("trial_id", "sweep", "arm", "outcome", "stop_reason")
_COUNTS = ("seed", "attempt", "steps", "tokens", "n_params", "seq_len", "spike_count")

COLUMNS = (
    *("trial_id", "sweep", "arm", "seed", "attempt", "outcome", "stop_reason", "causal", "steps"),
    *("tokens", "n_params", "seq_len", "best_val_loss_nats", "best_val_ppl"),
    *("final_val_loss_nats", "avg_layers_executed", "avg_predicted_length"),
    *("speedup_estimate", "speedup_measured", "tokens_per_second", "train_seconds"),
    *("peak_memory_mib", "grad_norm_mean", "grad_norm_std", "spike_count", "schatten_s1"),
    *("schatten_s2", "condition_number", "ponder_cost", "val_ppl_relative_to_dense"),
    *("speedup_relative_to_dense", "spikes_per_1000_steps", "perplexity_degradation"),
    *("downstream_accuracy", "explained_variance", "kl_nats"),
)


def collect(sweep_dir: Path) -> list[Row]:
    """Return one row per trial, in the order in which they were proposed.

    A trial without ``outcome.json`` is still running, or was killed: its outcome is
    ``interrupted`` and its stop reason ``None``.

    Raises:
        ConfigError: the folder is not that of a sweep.
    """
    swept = _sweep(sweep_dir)["swept"]
    folders = [path.parent for path in sweep_dir.glob("trials/*/config.json")]
    folders.sort(key=lambda folder: _json(folder / "proposal.json")["number"])
    trials = [(_json(folder / "config.json"), folder) for folder in folders]
    rows = [_row(config, _outcome(folder, config["attempt"]), swept) for config, folder in trials]
    for row in rows:
        row.update(_relative_to_dense(row, _deepest_dense(rows, row["seed"])))
    return rows


def objectives(sweep_dir: Path) -> tuple[Objective, ...]:
    """Return what the sweep optimises."""
    return tuple(Objective(**words) for words in _sweep(sweep_dir)["objectives"])


def write_trials_parquet(sweep_dir: Path) -> Path:
    """Write ``trials.parquet`` of a sweep, whole or not at all, and return its path."""
    rows = collect(sweep_dir)
    types = {name: _column_type(name) for name in COLUMNS}
    for knob in _sweep(sweep_dir)["swept"]:
        name = f"param/{knob}"
        types[name] = _knob_type(knob) or _type_of([row[name] for row in rows])
    table = pa.table({name: _array(rows, name, kind) for name, kind in types.items()})
    path = sweep_dir / "trials.parquet"
    with atomic.replace(path) as temporary:
        pq.write_table(table, temporary)
    return path


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


def front_verdict(rows: Sequence[Row], objectives: Sequence[Objective]) -> str:
    """Return in words how ACT fares against plain depth: on the front, and trial by trial."""
    kinds = [_kind(row) for row in pareto_front(rows, objectives)]
    finished = _contestants(rows, objectives)
    dense = [costs for costs, row in finished if _kind(row) == "dense"]
    act = [(costs, label(row)) for costs, row in finished if _kind(row) == "ACT"]
    said = (
        f"Points on the Pareto front: {len(kinds)}, of them ACT {kinds.count('ACT')}, "
        f"dense {kinds.count('dense')}."
    )
    if not act:
        return f"{said} No ACT trial finished."
    if not dense:
        return f"{said} No dense arm finished, so ACT has no rival here."
    matched = [name for costs, name in act if any(_as_good(rival, costs) for rival in dense)]
    free = [name for costs, name in act if not any(_as_good(rival, costs) for rival in dense)]
    return (
        f"{said} ACT trials finished: {len(act)}. A dense arm is at least as good in every "
        f"objective for {_listed(matched)}, and none is for {_listed(free)}."
    )


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


def label(row: Row) -> str:
    """Return what tells a trial from the others: its arm, or its swept knobs, and its seed."""
    knobs = [
        f"{name.rpartition('.')[2]}={_brief(value)}"
        for name, value in row.items()
        if name.startswith("param/") and value is not None
    ]
    words = [row["arm"]] if row["arm"] else knobs or [row["trial_id"]]
    return " ".join([*words, f"seed={row['seed']}"])


def _sweep(sweep_dir: Path) -> dict[str, Any]:
    if not (sweep_dir / "sweep.json").is_file():
        raise ConfigError(
            f"{sweep_dir} is not the folder of a sweep: it has no sweep.json; "
            "give a folder like runs/<sweep>/<date-name>"
        )
    return _json(sweep_dir / "sweep.json")


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _outcome(trial_dir: Path, attempt: int) -> dict[str, Any]:
    """Return how the trial ended; what an earlier attempt came to does not count."""
    path = trial_dir / "outcome.json"
    outcome = _json(path) if path.is_file() else {"attempt": -1}
    if outcome["attempt"] >= attempt:
        return outcome
    return {"attempt": attempt, "outcome": "interrupted", "stop_reason": None, "summary": {}}


def _row(config: Mapping[str, Any], outcome: Mapping[str, Any], swept: Iterable[str]) -> Row:
    knobs = config["config"]
    return {
        **dict.fromkeys(COLUMNS),
        "steps": outcome.get("step"),
        "seq_len": knobs.get("model.n_seq"),
        **{name: value for name, value in outcome["summary"].items() if name in COLUMNS},
        **{name: config[name] for name in ("trial_id", "sweep", "arm", "seed", "causal")},
        "n_params": config["n_params"],
        **{name: outcome[name] for name in ("attempt", "outcome", "stop_reason")},
        **{f"param/{knob}": knobs.get(knob) for knob in swept},
    }


def _deepest_dense(rows: Iterable[Row], seed: int) -> Row:
    """Return the deepest dense arm of that seed if it ended well, else an empty row."""
    arms = [row for row in rows if row["seed"] == seed and _dense_depth(row)]
    deepest = max(arms, key=_dense_depth, default={})
    return deepest if deepest.get("outcome") == "ok" else {}


def _relative_to_dense(row: Row, dense: Row) -> Row:
    return {
        "val_ppl_relative_to_dense": _ratio(row["best_val_ppl"], dense.get("best_val_ppl")),
        "speedup_relative_to_dense": _ratio(
            row["speedup_measured"], dense.get("speedup_measured")
        ),
    }


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def _dense_depth(row: Row) -> int:
    """Return the depth of a dense arm, 0 for every other row."""
    named = re.fullmatch(r"dense-(\d+)", row["arm"] or "")
    return int(named[1]) if named else 0


def _kind(row: Row) -> str:
    if _dense_depth(row):
        return "dense"
    knobs = (row.get("ponder_cost"), row.get("param/model.act_threshold"))
    return "ACT" if any(knob is not None for knob in knobs) else "other"


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


def _column_type(name: str) -> pa.DataType:
    if name in _TEXTS:
        return pa.string()
    if name == "causal":
        return pa.bool_()
    return pa.int64() if name in _COUNTS else pa.float64()


def _knob_type(path: str) -> pa.DataType | None:
    """Return the type that the config gives a knob, so that it is the same in every sweep."""
    kind: Any = TrialConfig
    for name in path.split("."):
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return None  # an option of the user's own model
        kind = kind.model_fields[name].annotation
    parts = set(get_args(kind)) or {kind}
    for type_, arrow in ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64())):
        if type_ in parts:
            return arrow
    return pa.string()


def _type_of(values: Iterable[Any]) -> pa.DataType:
    types = {type(value) for value in values if value is not None}
    if types == {bool}:
        return pa.bool_()
    if types == {int}:
        return pa.int64()
    return pa.float64() if types and types <= {int, float} else pa.string()


def _array(rows: Iterable[Row], name: str, kind: pa.DataType) -> pa.Array:
    values = [row[name] for row in rows]
    if pa.types.is_string(kind):
        values = [None if value is None else str(value) for value in values]
    return pa.array(values, type=kind)


_LEADERBOARD = {
    "val loss (nats)": "best_val_loss_nats",
    "ppl": "best_val_ppl",
    "layers": "avg_layers_executed",
    "speedup measured": "speedup_measured",
    "speedup estimate": "speedup_estimate",
    "tokens/s": "tokens_per_second",
}


def _leaderboard_cells(rows: Iterable[Row], objectives: Sequence[Objective]) -> list[list[str]]:
    cells = [["rank", "trial", *_LEADERBOARD, "outcome"]]
    for rank, row in enumerate(leaderboard(rows, objectives), start=1):
        numbers = [_brief(row[column]) for column in _LEADERBOARD.values()]
        running = row["outcome"] == "interrupted" and row["stop_reason"] is None
        cells.append([str(rank), label(row), *numbers, "running" if running else row["outcome"]])
    return cells


def _front_cells(rows: Iterable[Row], objectives: Sequence[Objective]) -> list[list[str]]:
    columns = [objective.column for objective in objectives]
    front = pareto_front(rows, objectives)
    cells = [[_kind(row), label(row), *(_brief(row[c]) for c in columns)] for row in front]
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


def _brief(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.5g}" if isinstance(value, float) else str(value)


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({'; '.join(names)})" if names else "0"
