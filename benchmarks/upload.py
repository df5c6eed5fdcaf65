"""What the stability files of every trial cost, and an upload from Parquet.

    python -m benchmarks.upload [--trials 200] [--steps 640]

Trials that train nothing are written to a temporary folder, with the numbers of six blocks. Then a
view shows them all at once in an embedded MLflow store, without and with their files, and
``mlflow-sync`` uploads them to another one, and then again, when nothing is missing.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bkray.events import EvalDone, Event, StepsDone, TrialEnded, TrialStarted
from bkray.report.stability import write_artifacts
from bkray.sinks.mlflow import MlflowView, Tracking, embedded_store
from bkray.sinks.mlflow_sync import sync_sweep
from bkray.sinks.parquet import ParquetSink
from bkray.sinks.replay import read_events

N_BLOCKS, KNOB = 6, "optimizer.lr"


def main() -> None:
    """Print what each part costs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--steps", type=int, default=640)
    asked = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there) / "sweep"
        trials = write_sweep(folder, asked.trials, asked.steps)
        print_drawing(trials)
        store = embedded_store(Path(there) / "shown")
        for name, artifacts in (("without", None), ("with", write_artifacts)):
            began, cpu = time.perf_counter(), time.process_time()
            show(store, folder, name, trials, artifacts)
            print(
                f"a view of all {len(trials)} at once, {name} files: closed after "
                f"{time.perf_counter() - began:.1f} s, {time.process_time() - cpu:.1f} s of CPU",
                flush=True,
            )
        print_uploads(folder, embedded_store(Path(there) / "synced"))


def print_drawing(trials: list[Path]) -> None:
    """Draw every trial, the first one cold."""
    cpu, wall = [], []
    for trial in trials:
        began, began_cpu = time.perf_counter(), time.process_time()
        write_artifacts(trial)
        cpu.append(time.process_time() - began_cpu)
        wall.append(time.perf_counter() - began)
    print(
        f"stability files of a trial: {1000 * statistics.median(cpu[1:]):.0f} ms of CPU "
        f"(the first one {1000 * cpu[0]:.0f} ms), {1000 * statistics.median(wall[1:]):.0f} ms; "
        f"of all {len(trials)}: {sum(cpu):.1f} s of CPU",
        flush=True,
    )


def print_uploads(folder: Path, tracking: Tracking) -> None:
    """Upload all, then nothing; without files, which would be drawn and sent each time."""
    for what in ("all", "nothing"):
        began = time.perf_counter()
        synced = sync_sweep(folder, tracking, warn=print)
        seconds = time.perf_counter() - began
        print(f"mlflow-sync of {what}: {synced.n_points} points, {seconds:.1f} s", flush=True)


def show(
    tracking: Tracking,
    folder: Path,
    name: str,
    trials: list[Path],
    artifacts: Callable[[Path], list[Path]] | None,
) -> None:
    """Show all trials in a view and close it."""
    view = MlflowView(
        tracking, "made up", name, {}, (KNOB,), folder=folder, artifacts=artifacts, warn=print
    )
    for trial in trials:
        sink = view.trial(trial.name)
        for event in read_events(trial):
            sink(event)
        sink.close()
    view.close()


def write_sweep(folder: Path, n_trials: int, n_steps: int) -> list[Path]:
    """Write the folder of a sweep and return those of its trials."""
    trials = [folder / "trials" / f"{number:04d}" for number in range(n_trials)]
    for number, trial in enumerate(trials):
        trial.mkdir(parents=True)
        proposal = {"number": number, "arm": "", "overrides": {}}
        (trial / "proposal.json").write_text(json.dumps(proposal))
        sink = ParquetSink(trial)
        for event in events(trial.name, number / n_trials, n_steps):
            sink(event)
        sink.close()
    record = {"name": "made up", "swept": [KNOB], "started": "2026-01-01T12:00:00+00:00"}
    (folder / "sweep.json").write_text(json.dumps(record))
    return trials


def events(name: str, lr: float, n_steps: int) -> Iterator[Event]:
    """Yield what a trial says that evaluates after every eighth window."""
    yield TrialStarted(
        trial_id=name,
        sweep="made up",
        arm="",
        seed=0,
        attempt=1,
        config={KNOB: lr, "model.n_seq": 128},
        n_params=1,
        causal=True,
        data_hash="none",
    )
    for step in range(16, n_steps + 1, 16):
        yield StepsDone(
            step=step,
            tokens=step,
            loss_nats=tuple(5 - lr + 1 / (step - i) for i in range(15, -1, -1)),
            grad_norm=tuple(1 + 1 / (step - i) for i in range(15, -1, -1)),
            lr=lr,
            window_seconds=0.1,
            block_norms={f"blocks.{i}": (1 / (step + i),) * 16 for i in range(N_BLOCKS)},
            activations={f"blocks.{i}": float(step) for i in range(N_BLOCKS)},
        )
        if step % 128 == 0:
            yield EvalDone(step=step, tokens=step, split="val", loss_nats=5 - lr)
    summary = {"best_val_loss_nats": 5 - lr, "steps": n_steps}
    yield TrialEnded(step=n_steps, outcome="ok", reason="", summary=summary)


if __name__ == "__main__":
    main()
