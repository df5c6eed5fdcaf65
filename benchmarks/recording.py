"""What it costs to write a trial down, as a share of the time of its 16 steps; the bar is 1%.

    python -m benchmarks.recording [--steps 400] [--rounds 20]

A trial of the default model (width 64) trains for real, and its events are what is written again
and again. In the trial's process: its Parquet sink, and pickling what goes to the driver. In the
driver: unpickling, handing the event to MLflow's queue, and the CPU time of the thread that writes
to an embedded MLflow store, fed at the pace at which the trial spoke; and once per trial, not
against the bar, its stability files. What Ray itself does for a report is in
``benchmarks.overhead``.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from ray import cloudpickle

from bkray.events import EvalDone, Event, StepsDone, TrialEnded, TrialStarted
from bkray.overrides import build
from bkray.report.stability import write_artifacts
from bkray.sinks.mlflow import MlflowView, open_store
from bkray.sinks.parquet import ParquetSink
from bkray.train.window import WINDOW
from bkray.trial import run

MOST_SHARE = 0.01
WRITER = "mlflow-writer"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spoken = train(chosen.steps, Path(folder))
        events = [event for _, event in spoken]
        files = drawing_seconds(events, Path(folder) / "drawn")
    windows = [event for event in events if isinstance(event, StepsDone)]
    whole = [window for window in windows if len(window.loss_nats) == WINDOW]
    window_seconds = median(window.window_seconds for window in whole)
    reports = list(reported(events))
    pickled = [cloudpickle.dumps(report) for report in reports]
    print(f"{WINDOW} steps take {1000 * window_seconds:.0f} ms, median of {len(whole)} windows")
    print(f"{sum(map(len, pickled)) / len(windows) / 1000:.1f} kB pickled per window")

    def per_window(work: Callable[[], None]) -> float:
        return median(seconds_of(work) for _ in range(chosen.rounds)) / len(windows)

    in_trial = {
        "Parquet sink": per_window(lambda: to_parquet(events)),
        "pickling for Tune": per_window(lambda: each(cloudpickle.dumps, reports)),
    }
    put, wrote = to_mlflow(spoken)
    in_driver = {
        "unpickling": per_window(lambda: each(cloudpickle.loads, pickled)),
        "handing over to MLflow": put / len(windows),
        "MLflow's thread, CPU": wrote / len(windows),
    }
    show("in the trial's process", in_trial, window_seconds)
    show("in the driver", in_driver, window_seconds)
    trained = sum(window.window_seconds for window in windows)
    share = f"{100 * files / trained:.2f}% of the {trained:.0f} s that this one trained"
    print(f"in the driver, once per trial: stability files {1000 * files:.0f} ms of CPU, {share}")


def train(steps: int, folder: Path) -> list[tuple[float, Event]]:
    """Return every event of a trial and when it was said, in seconds from the first."""
    began = time.monotonic()
    return [
        (time.monotonic() - began, event)
        for event in run(build({"train.steps": steps}), folder, sweep="recording")
    ]


def reported(events: Sequence[Event]) -> Iterator[dict[str, object]]:
    """Yield what a trial reports to Tune: its events up to the next evaluation, or to its end."""
    batch: list[Event] = []
    for event in events:
        batch.append(event)
        if isinstance(event, EvalDone | TrialEnded):
            yield {"events": batch, "step": event.step, "complete": False, "done": False}
            batch = []


def each(work: Callable[[object], object], things: Sequence[object]) -> None:
    for thing in things:
        work(thing)


def seconds_of(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def to_parquet(events: Sequence[Event]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sink = ParquetSink(Path(folder))
        for event in events:
            sink(event)
        sink.close()


def drawing_seconds(events: Sequence[Event], folder: Path) -> float:
    """Return the CPU seconds of this process for the stability files of a trial, once warm."""
    sink = ParquetSink(folder)
    for event in events:
        sink(event)
    sink.close()
    spent = []
    for _ in range(6):
        began = time.process_time()
        write_artifacts(folder)
        spent.append(time.process_time() - began)
    return median(spent[1:])


def to_mlflow(spoken: Sequence[tuple[float, Event]]) -> tuple[float, float]:
    """Return the seconds that the events' sink took and the CPU seconds of the writing thread.

    Two trials speak at the same time, as on two cores; the figures are for one of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        shown = MlflowView(open_store(Path(folder)), "recording", "one", {}, [])
        warm(shown, [event for _, event in spoken])
        clock = writer_clock()
        before, put = time.clock_gettime(clock), 0.0
        sinks = [shown.trial(name) for name in ("first", "second")]
        began = time.monotonic()
        for said, event in spoken:
            time.sleep(max(0.0, began + said - time.monotonic()))
            for name, sink in zip(("first", "second"), sinks, strict=True):
                own = replace(event, trial_id=name) if isinstance(event, TrialStarted) else event
                put += seconds_of(partial(sink, own))
        for sink in sinks:
            sink.close()
        wait_until_idle(clock)
        wrote = time.clock_gettime(clock) - before
        shown.close()
    return put / len(sinks), wrote / len(sinks)


def warm(shown: MlflowView, events: Sequence[Event]) -> None:
    """Let the store make its tables and the sweep's run, which no window pays for."""
    sink = shown.trial("warm")
    for event in events:
        sink(event)
    sink.close()
    wait_until_idle(writer_clock())


def writer_clock() -> int:
    """Return the CPU clock of the thread that writes to MLflow."""
    [thread] = [thread for thread in threading.enumerate() if thread.name == WRITER]
    assert thread.ident is not None
    return time.pthread_getcpuclockid(thread.ident)


def wait_until_idle(clock: int) -> None:
    """Wait until the thread of this clock has done nothing for longer than it ever waits."""
    used = -1.0
    while (now := time.clock_gettime(clock)) > used + 0.02:
        used = now
        time.sleep(4)


def show(where: str, seconds: dict[str, float], window_seconds: float) -> None:
    whole = sum(seconds.values())
    for name, spent in (*seconds.items(), ("together", whole)):
        share = spent / window_seconds
        print(f"{where}: {name:24s} {1000 * spent:7.3f} ms per window, {100 * share:.3f}%")
    held = "held" if whole / window_seconds <= MOST_SHARE else "MISSED"
    print(f"{where}: at most {100 * MOST_SHARE:.0f}%: {held}", flush=True)


if __name__ == "__main__":
    main()
