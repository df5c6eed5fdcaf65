"""Events come back from a trial's folder: their rows are the ones that were written."""

import json
import math
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_parquet import ended, evaluation, started, window

from bkray.events import (
    CellDone,
    EvalDone,
    Event,
    Measured,
    MemoryPeak,
    Rewound,
    Row,
    RungDone,
    Spiked,
    StepsDone,
    TrialEnded,
    Warned,
    rows,
)
from bkray.sinks.parquet import ParquetSink, read_rows
from bkray.sinks.replay import dated_events, read_events

KEY = ("kind", "step", "split", "name")


def keep(folder: Path, events: list[Event]) -> None:
    sink = ParquetSink(folder)
    for event in events:
        sink(event)
    sink.close()


def written(folder: Path) -> list[str]:
    """The rows in the folder as text, for NaN equals nothing."""
    table = read_rows(folder).to_pylist()
    return [str(Row(*(row[name] for name in (*KEY, "value")))) for row in table]


def replayed(folder: Path) -> list[str]:
    return [str(row) for event in read_events(folder) for row in rows(event)]


def number(choose: random.Random) -> float:
    return choose.choice([choose.gauss(2, 1), choose.gauss(0, 1e-9), math.nan, math.inf, 0.0])


def made_up(choose: random.Random, first: int) -> Iterator[Event]:
    """What a trial may say from step ``first`` on, in windows of at most 16 steps."""
    step, rewinds = first, 2
    while step < first + 120:
        n = 16 - step % 16 if choose.random() < 0.7 else 8 - step % 8
        step += n
        masked = choose.sample(range(step - n + 1, step + 1), choose.randint(0, 2))
        blocks = [f"blocks.{i}" for i in range(choose.randint(0, 2))]
        yield StepsDone(
            step=step,
            tokens=step * 100,
            loss_nats=tuple(number(choose) for _ in range(n)),
            grad_norm=tuple(number(choose) for _ in range(n)),
            lr=choose.random(),
            window_seconds=choose.random(),
            metrics={"train/ponder_cost": number(choose)} if choose.random() < 0.5 else {},
            masked=tuple(sorted(masked)),
            block_norms={block: tuple(number(choose) for _ in range(n)) for block in blocks},
            activations={block: number(choose) for block in blocks},
        )
        for rule in ("doubled", "robust"):
            if choose.random() < 0.3:
                at = choose.randint(step - n + 1, step)
                yield Spiked(step=at, ratio=number(choose), rule=rule)  # type: ignore[arg-type]
        if choose.random() < 0.3:
            metrics = {"act/avg_layers_executed": number(choose)}
            for split in choose.sample(["val", "test"], choose.randint(1, 2)):
                loss = number(choose)
                yield EvalDone(
                    step=step, tokens=step * 100, split=split, loss_nats=loss, metrics=metrics
                )
            yield MemoryPeak(step=step, peak_mib=choose.random())
        if choose.random() < 0.2:
            metrics = {"loss": number(choose), "learning_rate": choose.random()}
            yield RungDone(step=step, n_seq=8 * step, diverged=False, metrics=metrics)
        if rewinds and step > first + 40 and choose.random() < 0.2:
            rewinds -= 1
            to_step = (step - 17) // 16 * 16
            yield Rewound(step=step, to_step=to_step)
            step = to_step
    for n_eval, strategy in ((32, "truncate"), (32, "extrapolate"), (64, "truncate")):
        metrics = {} if strategy == "extrapolate" else {"ppl": choose.random(), "mrr_long": 1.0}
        yield CellDone(step=step, n_eval=n_eval, strategy=strategy, metrics=metrics)
    yield Measured(step=step, metrics={"speed/speedup_measured": 1.5, "speed/flops": 2.0})
    summary = {"best_val_loss_nats": math.nan, "steps": step, "advice": None, "device": "cpu"}
    yield TrialEnded(step=step, outcome="ok", reason="all steps done", summary=summary)


@pytest.mark.parametrize("seed", range(40))
def test_the_rows_of_the_events_are_the_rows_that_were_written(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    said = list(made_up(choose, 0))
    keep(tmp_path, [started(), *said])
    assert replayed(tmp_path) == written(tmp_path)
    cells = [event for event in said if isinstance(event, CellDone)]
    assert [event for event in read_events(tmp_path) if isinstance(event, CellDone)] == cells
    windows = [event for event in said if isinstance(event, StepsDone)]
    assert len(windows) > 5
    if not any(isinstance(event, Rewound) for event in said):
        told = [event for event in read_events(tmp_path) if isinstance(event, StepsDone)]
        assert [(w.step, len(w.loss_nats), w.tokens, w.masked) for w in told] == [
            (w.step, len(w.loss_nats), w.tokens, w.masked) for w in windows
        ]


@pytest.mark.parametrize("seed", range(10))
def test_a_trial_of_several_attempts_comes_back_as_one(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    keep(tmp_path, [started(), *list(made_up(choose, 0))[:-2]])
    keep(tmp_path, [started(attempt=2, step=64), *made_up(choose, 64)])
    assert replayed(tmp_path) == written(tmp_path)
    steps = [event.step for event in read_events(tmp_path) if isinstance(event, StepsDone)]
    assert steps == sorted(set(steps))


def test_what_is_no_number_comes_back_too(tmp_path: Path) -> None:
    begun = replace(started(), split=4)
    evaluated = evaluation(16, 1.5)
    warned = Warned(step=16, message="be careful")
    summary: dict[str, Any] = {"steps": 16, "best_val_loss_nats": 1.5, "advice": None}
    end = TrialEnded(step=16, outcome="diverged", reason="loss is nan", summary=summary)
    keep(tmp_path, [begun, window(16, 1.0), evaluated, warned, end])
    told = list(read_events(tmp_path))
    assert told == [begun, window(16, 1.0), evaluated, warned, end]
    assert type(told[-1].summary["steps"]) is int  # type: ignore[union-attr]


def test_a_trial_without_an_outcome_has_no_end(tmp_path: Path) -> None:
    keep(tmp_path, [started(), window(16, 1.0), ended(16, steps=16)])
    keep(tmp_path, [started(attempt=2, step=16), window(32, 1.0)])
    kinds = [type(event) for event in read_events(tmp_path)]
    assert kinds[1:] == [StepsDone, StepsDone]
    assert list(read_events(tmp_path / "nowhere")) == []


def test_a_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    keep(tmp_path, [started(), window(16, 1.0), ended(16, steps=16)])
    config, outcome = tmp_path / "config.json", tmp_path / "outcome.json"
    for path, name in ((config, "split"), (outcome, "warnings")):
        said = json.loads(path.read_text())
        del said[name]
        path.write_text(json.dumps(said))
    begun, *_, end = read_events(tmp_path)
    assert (begun, end) == (started(), ended(16, steps=16))


def test_events_have_the_time_at_which_they_were_written(tmp_path: Path) -> None:
    keep(tmp_path, [started(), window(16, 1.0), evaluation(16, 1.5), window(32, 1.0), ended(32)])
    files = ["config.json", "events/1-00000.parquet", "events/1-00001.parquet", "outcome.json"]
    for i, name in enumerate(files):
        os.utime(tmp_path / name, (1000 + i, 1000 + i))
    times = [(type(event).__name__, ms) for event, ms in dated_events(tmp_path)]
    assert times == [
        ("TrialStarted", 1_000_000),
        ("StepsDone", 1_001_000),
        ("EvalDone", 1_001_000),
        ("StepsDone", 1_002_000),
        ("TrialEnded", 1_003_000),
    ]
