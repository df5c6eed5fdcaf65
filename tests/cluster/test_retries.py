"""What is done about a trial that breaks: nothing, another attempt, smaller micro-batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from standin import (
    FAILS,
    FAILS_ANEW,
    FAILS_ONCE,
    NEEDS_LESS,
    OUT_OF_MEMORY,
    carry,
    point,
    sweep_of,
)
from views import Remembering

from bkray.cluster.retries import bytes_asked, gives_up, tries_again
from bkray.config import TrainConfig
from bkray.events import TrialEnded, TrialStarted, Warned
from bkray.train import attempts
from bkray.train.attempts import Attempt, Failure

BROKE = Failure("failed", 20, "RuntimeError: it broke")
LATER = Failure("failed", 30, "RuntimeError: it broke")
DIED = Failure("failed", 20, "the worker died: ActorDiedError")
FULL = Failure("oom", 0, "MemoryError")


@pytest.mark.parametrize(
    ("failures", "split", "final"),
    [
        ([], 1, False),
        ([BROKE], 1, False),
        ([BROKE, BROKE], 1, True),
        ([BROKE, LATER], 1, False),
        ([BROKE, LATER, BROKE], 1, True),
        ([DIED, DIED], 1, False),
        ([DIED, DIED, DIED], 1, True),
        ([FULL], 1, True),
        ([FULL], 2, False),
        ([FULL, FULL], 2, True),
        ([FULL, BROKE], 2, False),
        ([BROKE, FULL, BROKE], 2, True),
    ],
)
def test_a_trial_is_given_up_after_three_tries_or_a_repetition(
    failures: list[Failure], split: int, final: bool
) -> None:
    assert gives_up(Attempt(number=9, split=split, failures=tuple(failures))) == final


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "workers", "halves"),
    [(8, 1, 1, True), (8, 4, 1, True), (8, 8, 1, False), (8, 2, 4, False), (6, 3, 1, True)],
)
def test_micro_batches_are_halved_if_each_worker_has_two_rows(
    tmp_path: Path, batch_size: int, accumulation: int, workers: int, halves: bool
) -> None:
    plan = TrainConfig(batch_size=batch_size, accumulation=accumulation)
    ended = TrialEnded(step=0, outcome="oom", reason="MemoryError", summary={})
    assert bool(tries_again(tmp_path, ended, plan, workers)) == halves
    assert attempts.last(tmp_path).split == (2 if halves else 1)
    assert attempts.last(tmp_path).failures == (FULL,)
    assert not tries_again(tmp_path, ended, plan, workers)


@pytest.mark.parametrize("outcome", ["ok", "pruned", "diverged", "interrupted"])
def test_what_did_not_break_is_not_tried_again(tmp_path: Path, outcome: str) -> None:
    ended = TrialEnded(step=0, outcome=outcome, reason="", summary={})
    assert not tries_again(tmp_path, ended, TrainConfig())
    assert not list(tmp_path.iterdir())


def test_the_bytes_that_were_asked_for_are_read_from_what_torch_and_numpy_say() -> None:
    with pytest.raises(MemoryError) as numpy_said:
        np.empty(10**17)
    assert bytes_asked(numpy_said.value) == pytest.approx(8e17, rel=1e-2)
    with pytest.raises(RuntimeError) as torch_said:
        torch.empty(10**15)
    assert bytes_asked(torch_said.value) == 4 * 10**15
    cuda = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 9 GiB"
    assert bytes_asked(RuntimeError(cuda)) == 2.5 * 2**30
    assert bytes_asked(RuntimeError("tried to allocate 20.00 MiB")) == 20 * 2**20
    assert bytes_asked(MemoryError()) is None


def outcome_of(folder: Path, view: Remembering, trial: int = 0) -> dict[str, object]:
    trial_id = view.trials[trial][0]
    said: dict[str, object] = json.loads(
        (folder / "trials" / trial_id / "outcome.json").read_text()
    )
    return said


def test_a_crash_is_tried_again_from_the_checkpoint_and_counts_once(tmp_path: Path) -> None:
    view = Remembering()
    ended = carry(sweep_of(point(FAILS_ONCE), n_trials=2), tmp_path, view, local=True)
    assert ended.outcomes == {"ok": 2}
    assert ended.first_failure == ""
    first, second, _ = (sink.events for _, sink in view.trials)
    assert first[-1] == Warned(
        step=10,
        message="failed: RuntimeError: the stand-in broke; trying again from its checkpoint",
    )
    assert isinstance(second[0], TrialStarted)
    assert (second[0].attempt, second[0].step) == (2, 10)
    assert view.trials[0][0] == view.trials[1][0]
    assert outcome_of(tmp_path, view)["attempt"] == 2


@pytest.mark.parametrize(("dropout", "n_attempts"), [(FAILS, 2), (FAILS_ANEW, 3)])
def test_a_crash_that_comes_back_is_final(tmp_path: Path, dropout: float, n_attempts: int) -> None:
    view = Remembering()
    ended = carry(sweep_of(point(dropout), n_trials=2), tmp_path, view, local=True)
    assert ended.outcomes == {"failed": 1, "ok": 1}
    assert ended.first_failure.startswith("RuntimeError: the stand-in broke")
    assert len(view.trials) == n_attempts + 1
    assert [outcome for outcome, _ in view.endings] == ["failed", "ok"]
    assert outcome_of(tmp_path, view)["attempt"] == n_attempts


def test_memory_that_runs_out_is_answered_once_by_half_the_micro_batch(tmp_path: Path) -> None:
    view = Remembering()
    sweep = sweep_of(point(NEEDS_LESS), point(OUT_OF_MEMORY), n_trials=3)
    ended = carry(sweep, tmp_path, view, local=True)
    assert ended.outcomes == {"ok": 2, "oom": 1}
    message = view.trials[0][1].events[-1].message  # type: ignore[union-attr]
    assert message.endswith("trying again with half the micro-batch")
    started = view.trials[1][1].events[0]
    assert isinstance(started, TrialStarted)
    assert (started.attempt, started.split) == (2, 2)
    assert outcome_of(tmp_path, view)["outcome"] == "ok"
    lost = outcome_of(tmp_path, view, trial=3)
    assert lost["outcome"] == "oom"
    assert lost["summary"] == {"oom_bytes": 10 * 2**40}
    assert "10.0 TiB" in str(lost["stop_reason"])


def test_one_error_in_the_first_three_trials_ends_the_sweep(tmp_path: Path) -> None:
    bad = [point(FAILS, lr) for lr in (0.001, 0.002, 0.003)]
    view = Remembering()
    ended = carry(sweep_of(*bad, n_trials=9), tmp_path, view, local=True)
    assert ended.outcomes == {"failed": 3}
    assert "standin.py" in ended.always_fails
    assert ended.always_fails.count("Traceback") == 1
    assert not ended.interrupted


def test_three_errors_after_a_good_trial_do_not(tmp_path: Path) -> None:
    bad = [point(FAILS, lr) for lr in (0.001, 0.002, 0.003)]
    ended = carry(sweep_of(point(0.0), *bad, n_trials=5), tmp_path, local=True)
    assert ended.outcomes == {"ok": 2, "failed": 3}
    assert ended.always_fails == ""
