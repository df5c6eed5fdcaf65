"""What every sink promises: any event, in order, and a quiet close."""

import io
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from bkray.events import (
    EvalDone,
    Event,
    Measured,
    MemoryPeak,
    Rewound,
    Spiked,
    StepsDone,
    TrialEnded,
    TrialStarted,
    Warned,
)
from bkray.sinks.console import ConsoleView
from bkray.sinks.mlflow import MlflowView, open_store
from bkray.sinks.parquet import ParquetSink, read_rows
from bkray.sinks.sink import InMemory, Null, Sink, SweepView, Tee

STARTED = TrialStarted(
    trial_id="0123456789ab",
    sweep="act",
    arm="",
    seed=0,
    attempt=1,
    config={"train.steps": 4},
    n_params=10,
    causal=True,
    data_hash="d",
    split=2,
)
WINDOW = StepsDone(
    step=2,
    tokens=20,
    loss_nats=(2.0, float("nan")),
    grad_norm=(1.0, float("inf")),
    lr=1e-3,
    window_seconds=0.1,
    masked=(2,),
    block_norms={"blocks.0": (1.0, float("nan")), "blocks.1": (0.5, 0.5)},
    activations={"blocks.0": float("inf"), "blocks.1": 3.0},
)
LOSSES = (1.5, 1.25, 1.75)
EVALS = [EvalDone(step=2 + i, tokens=20, split="val", loss_nats=x) for i, x in enumerate(LOSSES)]
ENDED = TrialEnded(step=4, outcome="ok", reason="", summary={"steps": 4, "device": "cpu"})
EVERY_KIND: list[Event] = [
    STARTED,
    WINDOW,
    Spiked(step=2, ratio=3.0),
    Spiked(step=2, ratio=float("inf"), rule="robust"),
    Rewound(step=2, to_step=0),
    Warned(step=0, message="a checkpoint could not be read"),
    WINDOW,
    *EVALS,
    Measured(step=4, metrics={"speed/tokens_per_second": 9.0}),
    MemoryPeak(step=4, peak_mib=1.0),
    ENDED,
]


class Kind(NamedTuple):
    """A sink, what closes it for good, and the validation losses in the order it keeps them."""

    sink: Sink
    close: Callable[[], None]
    losses: Callable[[], list[float] | None]


def _of_view(view: SweepView, losses: Callable[[], list[float] | None]) -> Kind:
    sink = view.trial(STARTED.trial_id)

    def close() -> None:
        sink.close()
        view.close()

    return Kind(sink, close, losses)


def null(folder: Path) -> Kind:
    sink = Null()
    return Kind(sink, sink.close, lambda: None)


def in_memory(folder: Path) -> Kind:
    sink = InMemory()
    return Kind(sink, sink.close, lambda: _losses(sink.events))


def tee(folder: Path) -> Kind:
    kept = InMemory()
    sink = Tee(Null(), kept)
    return Kind(sink, sink.close, lambda: _losses(kept.events))


def parquet(folder: Path) -> Kind:
    sink = ParquetSink(folder)

    def losses() -> list[float]:
        rows = read_rows(folder).to_pylist()
        return [row["value"] for row in rows if row["name"] == "val/loss_nats"]

    return Kind(sink, sink.close, losses)


def plain_console(folder: Path) -> Kind:
    out = io.StringIO()

    def losses() -> list[float]:
        lines = [line for line in out.getvalue().splitlines() if line.startswith("eval")]
        return [float(line.split("val loss ")[1].split(",")[0]) for line in lines]

    return _of_view(ConsoleView(1, Console(file=out)), losses)


def live_console(folder: Path) -> Kind:
    console = Console(file=io.StringIO(), force_terminal=True)
    return _of_view(ConsoleView(1, console), lambda: None)


def mlflow(folder: Path) -> Kind:
    tracking = open_store(folder.parent)  # one for the module: a new one takes seconds

    def losses() -> list[float]:
        from mlflow import MlflowClient

        client = MlflowClient(tracking.uri)
        known = client.get_experiment_by_name(folder.name)
        runs = client.search_runs([known.experiment_id], f"tags.trial_id = '{STARTED.trial_id}'")
        ids = [run.info.run_id for run in runs]
        return [m.value for i in ids for m in client.get_metric_history(i, "val/loss_nats")]

    return _of_view(MlflowView(tracking, folder.name, "sweep", {}, ()), losses)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(params=[null, in_memory, tee, parquet, plain_console, live_console, mlflow])
def kind(request: pytest.FixtureRequest, parent: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = request.param(parent / uuid.uuid4().hex)
    assert isinstance(made, Kind)
    return made


def _losses(events: list[Event]) -> list[float]:
    return [event.loss_nats for event in events if isinstance(event, EvalDone)]


def test_every_kind_of_event_is_taken_and_the_order_kept(kind: Kind) -> None:
    for event in EVERY_KIND:
        kind.sink(event)
    kind.close()
    assert kind.losses() in (None, list(LOSSES))


def test_it_may_be_closed_twice(kind: Kind) -> None:
    for event in EVERY_KIND:
        kind.sink(event)
    kind.close()
    kind.close()
    assert kind.losses() in (None, list(LOSSES))


def test_nothing_is_lost_when_it_is_closed_before_the_end(kind: Kind) -> None:
    for event in [STARTED, WINDOW, *EVALS]:
        kind.sink(event)
    kind.close()
    assert kind.losses() in (None, list(LOSSES))


def test_it_may_be_closed_before_anything_happened(kind: Kind) -> None:
    kind.close()
    kind.close()
    assert kind.losses() in (None, [])
