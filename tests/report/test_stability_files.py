"""The stability files of a trial say what its rows say, whatever became of it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bkray.events import (
    EvalDone,
    Event,
    MemoryPeak,
    Rewound,
    RungDone,
    Spiked,
    StepsDone,
    TrialEnded,
    TrialStarted,
)
from bkray.report.stability import draw_forensics, write_artifacts, write_stability
from bkray.report.traces import POINTS, Mark, Trace, traces
from bkray.sinks.parquet import ParquetSink

PNG = b"\x89PNG"
STARTED = TrialStarted(
    trial_id="t",
    sweep="act",
    arm="",
    seed=0,
    attempt=1,
    config={"model.n_seq": 256},
    n_params=1,
    causal=True,
    data_hash="d",
)


def window(step: int, *losses: float, norm: float = 2.0, **more: Any) -> StepsDone:
    return StepsDone(
        step=step,
        tokens=step,
        loss_nats=losses,
        grad_norm=(norm,) * len(losses),
        lr=0.1,
        window_seconds=0.1,
        **more,
    )


def ended(step: int, outcome: str = "ok", reason: str = "") -> TrialEnded:
    return TrialEnded(step=step, outcome=outcome, reason=reason, summary={"steps": step})


def written(folder: Path, *events: Event, started: TrialStarted = STARTED) -> dict[str, Any]:
    """The three JSON files by name; the picture is one."""
    sink = ParquetSink(folder)
    for event in [started, *events]:
        sink(event)
    sink.close()
    paths = write_stability(folder)
    assert paths[-1].read_bytes().startswith(PNG)
    assert [path.parent for path in paths] == [folder / "stability"] * 4
    return {path.stem: json.loads(path.read_text()) for path in paths[:-1]}


def test_a_healthy_trial(tmp_path: Path) -> None:
    said = written(
        tmp_path,
        window(2, 3.0, 2.0, norm=1.0),
        window(4, 2.0, 1.0, norm=3.0),
        EvalDone(step=4, tokens=4, split="val", loss_nats=1.5),
        MemoryPeak(step=4, peak_mib=64.0),
        ended(4),
    )
    assert said["summary"] == {
        "256": {
            "loss_nats": 1.5,
            "perplexity": math.exp(1.5),
            "grad_norm_mean": 2.0,
            "grad_norm_std": 1.0,
            "spike_count": 0,
            "nan_seen": False,
            "peak_memory_mib": 64.0,
            "diverged_step": None,
        }
    }
    assert said["gradient_norms"] == {
        "256": {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0, "n": 4, "n_nonfinite": 0}
    }
    assert said["spikes"] == {"spikes": [], "masked": [], "rewinds": []}


def test_each_length_of_a_ladder_has_its_own_numbers(tmp_path: Path) -> None:
    config = {"model.n_seq": 16, "ladder.lengths": "4,8,16"}
    said = written(
        tmp_path,
        window(2, 3.0, 2.0, norm=1.0),
        EvalDone(step=2, tokens=2, split="val", loss_nats=2.5),
        RungDone(step=2, n_seq=4, diverged=False, metrics={"loss": 2.5}),
        window(4, 2.0, 5.0, norm=3.0),
        Spiked(step=4, ratio=2.5),
        window(5, math.nan, norm=7.0),
        RungDone(step=5, n_seq=8, diverged=True, metrics={}),
        ended(5, "diverged", "it is nan"),
        started=replace(STARTED, config=config),
    )
    norms = {n: (one["n"], one["mean"]) for n, one in said["gradient_norms"].items()}
    assert norms == {"4": (2, 1.0), "8": (3, pytest.approx(13 / 3))}
    first, second = said["summary"]["4"], said["summary"]["8"]
    assert (first["loss_nats"], first["spike_count"], first["diverged_step"]) == (2.5, 0, None)
    assert (second["spike_count"], second["nan_seen"], second["diverged_step"]) == (1, True, 5)
    assert not first["nan_seen"]


def test_spikes_rewinds_and_masked_steps_are_listed(tmp_path: Path) -> None:
    said = written(
        tmp_path,
        window(2, 3.0, 9.0, masked=(2,)),
        Spiked(step=2, ratio=3.0),
        Spiked(step=2, ratio=math.inf, rule="robust"),
        Rewound(step=3, to_step=2),
        ended(3),
    )
    assert said["spikes"] == {
        "spikes": [
            {"step": 2, "ratio": 3.0, "rule": "doubled"},
            {"step": 2, "ratio": None, "rule": "robust"},
        ],
        "masked": [2],
        "rewinds": [{"step": 3, "to_step": 2}],
    }
    assert said["summary"]["256"]["spike_count"] == 1  # the guides' rule alone


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf), (math.nan, math.nan)]
)
def test_a_diverged_trial_names_the_first_step_that_was_not_finite(
    tmp_path: Path, loss: float, norm: float
) -> None:
    broken = replace(window(4, 1.0, loss), grad_norm=(1.0, norm))
    said = written(tmp_path, window(2, 2.0, 1.5), broken, ended(4, "diverged", "it is nan"))
    summary = said["summary"]["256"]
    assert (summary["diverged_step"], summary["nan_seen"]) == (4, True)
    assert summary["loss_nats"] == (loss if math.isfinite(loss) else None)
    norms = said["gradient_norms"]["256"]
    assert norms["n_nonfinite"] == (0 if math.isfinite(norm) else 1)
    assert math.isfinite(norms["mean"])


def test_a_verdict_without_nan_has_the_step_of_its_record(tmp_path: Path) -> None:
    (tmp_path / "forensics").mkdir()
    record = {"verdict": {"step": 3}, "steps": [], "blocks": []}
    (tmp_path / "forensics" / "record.json").write_text(json.dumps(record))
    said = written(tmp_path, window(4, *[5.0] * 4), ended(4, "diverged", "drift at step 3"))
    summary = said["summary"]["256"]
    assert (summary["diverged_step"], summary["nan_seen"]) == (3, False)


def test_a_trial_in_which_nothing_was_finite_is_drawn_too(tmp_path: Path) -> None:
    said = written(tmp_path, window(1, math.nan, norm=math.nan), ended(1, "diverged", "nan"))
    assert said["gradient_norms"]["256"]["mean"] is None
    assert said["summary"]["256"]["loss_nats"] is None


def test_a_trial_without_a_step_has_no_files(tmp_path: Path) -> None:
    assert write_stability(tmp_path) == []
    assert write_artifacts(tmp_path) == []
    assert not (tmp_path / "stability").exists()


def test_a_running_trial_is_written_and_written_again(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    evaluated = EvalDone(step=2, tokens=2, split="val", loss_nats=1)
    for event in (STARTED, window(2, 2.0, 1.0), evaluated):
        sink(event)
    first = json.loads(write_stability(tmp_path)[2].read_text())
    sink(window(4, 1.0, 0.5))
    sink(ended(4))
    second = json.loads(write_stability(tmp_path)[2].read_text())
    assert first["256"]["perplexity"] == second["256"]["perplexity"] == math.e


def panels_of(spec: dict[str, Any]) -> dict[str, dict[str, list[tuple[int, float | None]]]]:
    """Panel to trace to points."""
    found: dict[str, dict[str, list[tuple[int, float | None]]]] = {}
    for panel in spec["vconcat"]:
        for layer in panel.get("layer", ()):
            if layer["mark"]["type"] == "line":
                drawn = found.setdefault(layer["encoding"]["y"]["title"], {})
                for row in layer["data"]["values"]:
                    drawn.setdefault(row["name"], []).append((row["step"], row["value"]))
    return found


def test_a_long_trace_keeps_its_peaks_and_its_gaps() -> None:
    values: list[float | None] = [1.0] * 10_000
    values[1234], values[7000] = 9.0, math.nan
    panels = {"loss": {"": Trace(range(10_000), values)}}
    figure = traces("x", "", panels, [Mark("diverged", 7000)])
    drawn = panels_of(figure.spec)["loss"][""]
    assert len(drawn) <= POINTS
    assert {(1234, 9.0), (7000, None)} <= set(drawn)
    json.dumps(figure.spec, allow_nan=False)


def test_panels_without_a_finite_number_are_left_out() -> None:
    empty = Trace([1, 2], [math.nan, None])
    panels = {"loss": {"": Trace([1, 2], [1.0, 2.0])}, "norms": {"a": empty}, "Schatten": {}}
    assert list(panels_of(traces("x", "", panels, []).spec)) == ["loss"]


def test_every_mark_has_a_line_of_its_own() -> None:
    marks = [Mark("diverged", 2), Mark("spike, doubled", 1), Mark("masked", 2)]
    spec = traces("x", "", {"loss": {"": Trace([1, 2], [1.0, 2.0])}}, marks).spec
    strip = spec["vconcat"][-1]
    assert strip["encoding"]["y"]["sort"] == ["spike, doubled", "masked", "diverged"]
    assert {(row["what"], row["step"]) for row in strip["data"]["values"]} == set(marks)


def test_forensics_are_drawn_from_the_record_alone(tmp_path: Path) -> None:
    steps = [
        {
            "step": step,
            "loss_nats": None if step == 5 else 1.0 * step,
            "grad_norm": 10.0**step,
            "block_norms": [None if step == 5 else 1.0, 2.0],
            "masked": step == 5,
            "batch": {"epoch": 0, "position": step},
            "starts": [0, 1],
        }
        for step in range(3, 6)
    ]
    verdict = {"state": "diverged", "reason": "loss is nan at step 5", "step": 5, "rule": "nan"}
    record = {"verdict": verdict, "snapshot_step": 2, "blocks": ["a", "b"], "steps": steps}
    (tmp_path / "record.json").write_text(json.dumps(record))
    path = draw_forensics(tmp_path)
    assert path.read_bytes().startswith(PNG)
    assert {one.name for one in tmp_path.iterdir()} == {"record.json", path.name}
