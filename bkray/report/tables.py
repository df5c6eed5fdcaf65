"""The table of a sweep, from its files alone: a row per trial.

A row is a dict of ``COLUMNS`` and one ``param/<config path>`` per swept knob; ``None`` means that
the column does not apply, or that the trial has not got there yet.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from bkray import atomic
from bkray.columns import COLUMNS as COLUMNS
from bkray.columns import COUNTS, TEXTS
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.overrides import row_length
from bkray.report.rung_rows import degradations, rungs
from bkray.sweep import Objective

Row = dict[str, Any]

NOTHING_ON = "none"
"""The arm of an ablation with every feature off: a dense model of full depth."""


def collect(sweep_dir: Path) -> list[Row]:
    """Return one row per trial, in the order in which they were proposed.

    A trial without ``outcome.json`` is still running, or was killed: its outcome is
    ``interrupted`` and its stop reason ``None``.

    Raises:
        ConfigError: the folder is not that of a sweep.
    """
    sweep = _sweep(sweep_dir)
    swept, arms = sweep["swept"], sweep.get("arms", [])
    folders = [path.parent for path in sweep_dir.glob("trials/*/config.json")]
    folders.sort(key=lambda folder: _json(folder / "proposal.json")["number"])
    trials = [(_json(folder / "config.json"), folder) for folder in folders]
    rows = [_row(config, _outcome(folder, config["attempt"]), swept) for config, folder in trials]
    for row in rows:
        row.update(_relative_to_dense(row, _full_dense(rows, arms, row["seed"])))
    ratio = degradations(rungs(sweep_dir))
    for row in rows:
        if row["outcome"] == "ok":
            row["perplexity_degradation"] = ratio.get((row["trial_id"], row["seq_len"]))
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
        "seq_len": row_length(knobs),
        **{name: value for name, value in outcome["summary"].items() if name in COLUMNS},
        **{name: config[name] for name in ("trial_id", "sweep", "arm", "seed", "causal")},
        "n_params": config["n_params"],
        **{name: outcome[name] for name in ("attempt", "outcome", "stop_reason")},
        **{f"param/{knob}": knobs.get(knob) for knob in swept},
    }


def _full_dense(rows: Iterable[Row], arms: Iterable[str], seed: int) -> Row:
    """Return the sweep's deepest dense arm of that seed if it ended well, else an empty row."""
    deepest = max(arms, key=_depth, default="")
    full = deepest if _depth(deepest) else NOTHING_ON
    for row in rows:
        if row["seed"] == seed and row["outcome"] == "ok" and row["arm"] == full:
            return row
    return {}


def _relative_to_dense(row: Row, dense: Row) -> Row:
    return {
        "val_ppl_relative_to_dense": _exp_of_difference(
            row["final_val_loss_nats"], dense.get("final_val_loss_nats")
        ),
        "speedup_relative_to_dense": _ratio(
            row["speedup_measured"], dense.get("speedup_measured")
        ),
    }


def is_dense(row: Row) -> bool:
    """Return whether the row is that of a dense arm, of any depth."""
    return row["arm"] == NOTHING_ON or _depth(row["arm"] or "") > 0


def _depth(arm: str) -> int:
    named = re.fullmatch(r"dense-(\d+)", arm)
    return int(named[1]) if named else 0


def _exp_of_difference(loss: float | None, reference: float | None) -> float | None:
    """Return the ratio of two perplexities from their losses at the last step."""
    if loss is None or reference is None or not math.isfinite(loss - reference):
        return None
    return math.exp(loss - reference) if loss - reference < 700 else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def _column_type(name: str) -> pa.DataType:
    if name in TEXTS:
        return pa.string()
    if name == "causal":
        return pa.bool_()
    return pa.int64() if name in COUNTS else pa.float64()


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
