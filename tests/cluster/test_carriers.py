"""The trial boundary: how exceptions become outcomes, how a trial is asked to stop."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bkray.cluster.carriers import (
    Job,
    Parts,
    ask_to_stop,
    asked_to_stop,
    attempt,
    forget_stop,
    one_line,
    outcome_of,
)
from bkray.config import TrialConfig
from bkray.events import Event, TrialEnded, TrialStarted
from bkray.sinks.parquet import ParquetSink
from bkray.train.run import Stop


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MemoryError(), "oom"),
        (OutOfMemoryError("CUDA out of memory"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "oom"),
        (RuntimeError("shapes cannot be multiplied"), "failed"),
    ],
)
def test_an_exception_has_its_outcome(error: Exception, outcome: str) -> None:
    assert outcome_of(error) == outcome


def test_a_reason_is_one_line() -> None:
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(MemoryError()) == "MemoryError"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder = tmp_path / "trials" / "one"
    folder.mkdir(parents=True)
    return Job(
        number=0,
        trial_id="one",
        data_hash="data",
        sweep="t",
        overrides={"seed": 5},
        folder=folder,
        sweep_folder=tmp_path,
        deadline=None,
    )


def test_a_trial_is_asked_to_stop_by_itself_by_the_sweep_or_by_the_clock(job: Job) -> None:
    assert asked_to_stop(job) is None
    ask_to_stop(job.folder, "pruned", "asha at step 10")
    assert asked_to_stop(job) == ("pruned", "asha at step 10")
    ask_to_stop(job.sweep_folder, "interrupted", "ctrl-c")
    assert asked_to_stop(job) == ("interrupted", "ctrl-c")
    forget_stop(job.sweep_folder)
    forget_stop(job.folder)
    assert asked_to_stop(job) is None
    assert asked_to_stop(replace(job, deadline=time.time() + 60)) is None
    assert asked_to_stop(replace(job, deadline=time.time())) == ("interrupted", "time budget")


def test_a_trial_that_dies_before_its_first_event_is_still_written_down(job: Job) -> None:
    def broken(config: TrialConfig, folder: Path, *, sweep: str, stop: Stop) -> Iterator[Event]:
        raise ValueError("no such model")
        yield

    for number in (1, 2):
        events = list(attempt(job, Parts(broken, ParquetSink)))
        assert [type(event) for event in events] == [TrialStarted, TrialEnded]
        outcome = json.loads((job.folder / "outcome.json").read_text())
        assert outcome["outcome"] == "failed"
        assert outcome["stop_reason"] == "ValueError: no such model"
        assert outcome["attempt"] == number
        assert "raise ValueError" in (job.folder / "error.txt").read_text()
    assert json.loads((job.folder / "config.json").read_text())["seed"] == 5
