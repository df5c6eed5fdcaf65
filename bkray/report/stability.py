"""How stable a trial was: its spikes, gradient norms and a figure, from its rows alone."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bkray import atomic
from bkray.overrides import row_length
from bkray.report.traces import Mark, Trace, traces
from bkray.report.vega import Figure, png
from bkray.sinks.parquet import read_rows
from bkray.stability import GradientNormTracker

_LOSS, _NORM = "train/loss_nats", "train/grad_norm"
_BLOCK, _SCHATTEN = "stability/grad_norm/", "stability/schatten"
_RULES = {"stability/spike_ratio": "doubled", "stability/robust_spike": "robust"}


def write_artifacts(trial_folder: Path) -> list[Path]:
    """Return the files of ``write_stability`` and, of a diverged trial, of ``draw_forensics``."""
    written = write_stability(trial_folder)
    forensics = trial_folder / "forensics"
    if (forensics / "record.json").exists():
        written.append(draw_forensics(forensics))
    return written


def write_stability(trial_folder: Path) -> list[Path]:
    """Write ``stability/{spikes,gradient_norms,summary}.json`` and ``stability.png`` anew.

    Return their paths; none for a trial that has not trained a step. ``gradient_norms`` and
    ``summary`` are by sequence length in tokens. Statistics are those of the finite norms.
    """
    table = read_rows(trial_folder)
    steps = table.filter(pc.field("kind") == "steps")
    if not steps.num_rows:
        return []
    diverged_step = _diverged_step(trial_folder, steps)
    by_length = _by_length(table, trial_folder)
    folder = trial_folder / "stability"
    folder.mkdir(exist_ok=True)
    norms = {n: _gradient_norms(part) for n, part in by_length.items()}
    said = {
        "spikes.json": _spikes(table),
        "gradient_norms.json": norms,
        "summary.json": {
            n: _summary(part, norms[n], diverged_step) for n, part in by_length.items()
        },
    }
    for name, value in said.items():
        atomic.write_json(folder / name, value)
    picture = folder / "stability.png"
    _draw(traces("stability", _words(trial_folder), *_of_rows(table, diverged_step)), picture)
    return [*(folder / name for name in said), picture]


def draw_forensics(forensics_folder: Path) -> Path:
    """Draw the steps before a divergence from ``record.json``; return the path of the PNG."""
    record = json.loads((forensics_folder / "record.json").read_text(encoding="utf-8"))
    seen, verdict = record["steps"], record["verdict"]
    numbers = [one["step"] for one in seen]
    blocks = {
        name: Trace(numbers, [one["block_norms"][i] for one in seen])
        for i, name in enumerate(record["blocks"])
    }
    panels = {
        "loss (nats per token)": {"": Trace(numbers, [one["loss_nats"] for one in seen])},
        "gradient norm": {"": Trace(numbers, [one["grad_norm"] for one in seen])},
        "gradient norm of each block": blocks,
    }
    marks = [
        *(Mark("masked", one["step"]) for one in seen if one["masked"]),
        Mark("diverged", verdict["step"]),
    ]
    words = f"{verdict['reason']}; since the last good state, after step {record['snapshot_step']}"
    path = forensics_folder / "forensics.png"
    _draw(traces("forensics", words, panels, marks), path)
    return path


def _draw(figure: Figure, path: Path) -> None:
    with atomic.replace(path) as temporary:
        temporary.write_bytes(png(figure))


def _of_rows(
    table: pa.Table, diverged_step: int | None
) -> tuple[dict[str, dict[str, Trace]], list[Mark]]:
    steps = table.filter(pc.field("kind") == "steps")
    panels = {
        "loss (nats per token)": {"": _trace(steps, _LOSS)},
        "gradient norm": {"": _trace(steps, _NORM)},
        "gradient norm of each block": _family(steps, _BLOCK),
        "Schatten norms": _family(table, _SCHATTEN),
    }
    said = _spikes(table)
    marks = [Mark(f"spike, {one['rule']}", one["step"]) for one in said["spikes"]]
    marks += [Mark("masked", step) for step in said["masked"]]
    marks += [Mark("rewound", one["step"]) for one in said["rewinds"]]
    if diverged_step is not None:
        marks.append(Mark("diverged", diverged_step))
    return panels, marks


def _trace(table: pa.Table, name: str) -> Trace:
    series = table.filter(pc.field("name") == name).sort_by("step")
    return Trace(series["step"].to_pylist(), series["value"].to_pylist())


def _family(table: pa.Table, prefix: str) -> dict[str, Trace]:
    """Return the series whose names begin alike, by the rest of their names."""
    names = (name for name in table["name"].unique().to_pylist() if name.startswith(prefix))
    return {name.removeprefix(prefix).lstrip("/_"): _trace(table, name) for name in names}


def _spikes(table: pa.Table) -> dict[str, Any]:
    rows = table.filter(pc.field("kind").isin(["spike", "rewind"])).to_pylist()
    masked = table.filter(pc.field("name") == "stability/masked")
    return {
        "spikes": [
            {"step": row["step"], "ratio": row["value"], "rule": _RULES[row["name"]]}
            for row in rows
            if row["kind"] == "spike"
        ],
        "masked": masked["step"].to_pylist(),
        "rewinds": [
            {"step": row["step"], "to_step": int(row["value"])}
            for row in rows
            if row["kind"] == "rewind"
        ],
    }


def _by_length(table: pa.Table, trial_folder: Path) -> dict[str, pa.Table]:
    """Return the rows of each sequence length that has steps; a ladder has several."""
    config = _json(trial_folder / "config.json")["config"]
    lengths = str(config.get("ladder.lengths") or row_length(config) or 0).split(",")
    found: dict[str, pa.Table] = {}
    first = 0.0
    for n in lengths:
        end = table.filter(pc.field("name") == f"seq{n}/diverged")["step"].to_pylist()
        last = end[-1] if end and n != lengths[-1] else math.inf
        part = table.filter((pc.field("step") > first) & (pc.field("step") <= last))
        if "steps" in part["kind"].to_pylist():
            found[n] = part
        first = last
    return found


def _gradient_norms(table: pa.Table) -> dict[str, Any]:
    tracker = GradientNormTracker()
    norms = _trace(table.filter(pc.field("kind") == "steps"), _NORM).values
    for norm in norms:
        tracker.add_norm(0, math.nan if norm is None else norm)
    n_nonfinite = tracker.nonfinite_count(0)
    counts = {"n": len(norms) - n_nonfinite, "n_nonfinite": n_nonfinite}
    return {**tracker.get_statistics(0), **counts}


def _summary(table: pa.Table, norms: dict[str, Any], diverged_step: int | None) -> dict[str, Any]:
    """Return a trial in a line; its loss is that of the last validation, else of the last step."""
    validation = _trace(table.filter(pc.field("kind") == "eval"), "val/loss_nats").values
    training = _trace(table, _LOSS).values
    loss = (validation or training)[-1]
    assert loss is not None
    peaks = _trace(table, "system/peak_memory_mib").values
    broken = any(not math.isfinite(value) for value in (*validation, *training) if value)
    spikes = table.filter(pc.field("name") == "stability/spike_ratio")
    return {
        "loss_nats": loss,
        "perplexity": math.exp(loss) if loss < 700 else None,
        "grad_norm_mean": norms["mean"],
        "grad_norm_std": norms["std"],
        "spike_count": spikes.num_rows,
        "nan_seen": broken or norms["n_nonfinite"] > 0,
        "peak_memory_mib": max((peak for peak in peaks if peak is not None), default=None),
        "diverged_step": diverged_step if diverged_step in table["step"].to_pylist() else None,
    }


def _diverged_step(trial_folder: Path, steps: pa.Table) -> int | None:
    """Return the step of the verdict, as far as the trial kept it; ``None`` if it is healthy."""
    record = trial_folder / "forensics" / "record.json"
    outcome = _json(trial_folder / "outcome.json")
    if outcome.get("outcome") != "diverged":
        return None
    if record.exists():
        return int(_json(record)["verdict"]["step"])
    broken = [
        step
        for name in (_LOSS, _NORM)
        for step, value in _pairs(_trace(steps, name))
        if value is None or not math.isfinite(value)
    ]
    return min(broken, default=int(outcome["step"]))


def _pairs(trace: Trace) -> Sequence[tuple[int, float | None]]:
    return list(zip(trace.steps, trace.values, strict=True))


def _words(trial_folder: Path) -> str:
    outcome = _json(trial_folder / "outcome.json")
    if not outcome:
        return f"trial {trial_folder.name}, not ended"
    reason = f": {outcome['stop_reason']}" if outcome["stop_reason"] else ""
    return f"trial {trial_folder.name}, {outcome['outcome']}{reason}"


def _json(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return said
