"""What a sweep may spend: counted from what trials reserve, kept over resumes, enforced."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from standin import PARTS, carry, identify, sweep_of
from views import Remembering

from bkray.cluster.budget import GPU_HOURS_ARE_UP, TIME_IS_UP, Budget, gpu_hours
from bkray.cluster.carriers import Parts
from bkray.cluster.options import SweepOptions
from bkray.cluster.tuner import run_sweep
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.events import Event
from bkray.sinks.parquet import ParquetSink
from bkray.train.run import Stop

ENDLESS: dict[str, Any] = {"train.steps": 10**9, "train.eval_every": 10**9}
HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_gpu_hours_are_reserved_gpus_by_wall_time_over_all_runs(tmp_path: Path) -> None:
    clock = Clock()
    first = Budget(tmp_path, max_gpu_hours=10.0, now=clock)
    first.begin(0, 4.0)
    clock.now = HOUR
    first.begin(1, 4.0)
    clock.now = 1.5 * HOUR
    first.end(0)
    first.end(0)
    assert first.gpu_hours == pytest.approx(6.0 + 2.0)
    assert not first.reached()
    clock.now = 1.6 * HOUR  # this driver dies now: what it looked at last is what is known
    assert not first.reached()
    again = Budget(tmp_path, max_gpu_hours=10.0, now=clock)
    assert again.gpu_hours == gpu_hours(tmp_path) == pytest.approx(8.4)
    again.begin(1, 4.0)
    clock.now = 1.999 * HOUR
    assert not again.reached()
    clock.now = 2.0 * HOUR
    assert again.reached() == GPU_HOURS_ARE_UP
    assert 0 < again.patience_left() < 60.0
    clock.now += 60.0
    assert again.patience_left() <= 0


def test_a_budget_that_nothing_draws_on_writes_nothing(tmp_path: Path) -> None:
    clock = Clock()
    budget = Budget(tmp_path, deadline=HOUR, now=clock)
    budget.begin(0, 0.0)
    clock.now = HOUR
    assert budget.reached() == TIME_IS_UP
    budget.end(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_gpu_hours": 1.0}, "no trial reserves a GPU"),
        ({"max_gpu_hours": 0.0, "gpus": 1.0}, "above 0"),
        ({"gpus": 1.0, "local": True}, "--local reserves no GPU"),
    ],
)
def test_a_budget_that_would_do_nothing_is_refused(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        carry(sweep_of(n_trials=1), tmp_path, **options)


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_gpu_hours_end_a_sweep_and_more_of_them_end_it_well(tmp_path: Path) -> None:
    asked = 2 / HOUR  # two GPUs for a second
    began, view = time.time(), Remembering()
    words: dict[str, Any] = {"gpus": 1.0, "max_gpu_hours": asked, "concurrency": 2}
    ended = carry(sweep_of(n_trials=3, base=ENDLESS), tmp_path, view, **words)
    assert ended.over_budget == GPU_HOURS_ARE_UP
    assert view.endings == [("interrupted", GPU_HOURS_ARE_UP)] * 2
    spent = gpu_hours(tmp_path)
    assert spent is not None
    assert asked <= spent < asked + 2 * min(60.0, time.time() - began) / HOUR
    nothing = carry(sweep_of(n_trials=3, base=ENDLESS), tmp_path, resume=True, **words)
    assert nothing.over_budget == GPU_HOURS_ARE_UP, "what was spent before counts"
    assert not nothing.outcomes
    assert gpu_hours(tmp_path) == spent


def stuck(config: TrialConfig, folder: Path, *, sweep: str, stop: Stop) -> Iterator[Event]:
    """A trial whose second window never ends."""
    for n_seen, event in enumerate(PARTS.run_trial(config, folder, sweep=sweep, stop=stop)):
        yield event
        if n_seen == 1:
            time.sleep(600)


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_a_trial_that_does_not_end_by_itself_is_ended(tmp_path: Path) -> None:
    view, began = Remembering(), time.monotonic()
    options = SweepOptions(
        out=tmp_path,
        preset="p",
        scheduler="none",
        gpus=1.0,
        max_gpu_hours=2 / HOUR,
        grace_seconds=1.0,
    )
    ended = run_sweep(
        sweep_of(n_trials=1),
        options,
        [view],
        parts=Parts(stuck, ParquetSink),
        identify=identify,
    )
    assert time.monotonic() - began < 60
    assert ended.over_budget == GPU_HOURS_ARE_UP
    assert view.endings == [("interrupted", GPU_HOURS_ARE_UP)]
    resumed = carry(sweep_of(n_trials=1), tmp_path, resume=True, gpus=1.0, max_gpu_hours=1.0)
    assert resumed.outcomes == {"ok": 1}


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_a_trial_that_waits_for_gpus_of_others_is_let_go(tmp_path: Path) -> None:
    holder = ray.remote(num_gpus=2)(Clock).remote()
    ray.get(holder.__call__.remote())
    ended = carry(sweep_of(n_trials=1), tmp_path, gpus=1.0, time_budget_seconds=4.0)
    ray.kill(holder)
    assert ended.over_budget == TIME_IS_UP
    assert not ended.outcomes
    assert gpu_hours(tmp_path) is None
