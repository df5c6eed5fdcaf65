"""A trial counts its attempts, and smaller micro-batches change its memory, not its numbers."""

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config
from trials import KINDS, of, play, short_config

from bkray.errors import ConfigError
from bkray.events import EvalDone, StepsDone, TrialEnded, TrialStarted
from bkray.train import attempts, checkpoint
from bkray.train.attempts import Attempt, Failure
from bkray.trial import run

OOM = Failure("oom", 3, "MemoryError: no room")


def test_attempts_count_from_one_and_keep_their_split(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    assert attempts.last(folder) == Attempt(0, 1)
    assert attempts.begin(folder) == Attempt(1, 1)
    assert attempts.note(folder, OOM, splits=True) == Attempt(1, 2, (OOM,))
    assert attempts.begin(folder) == Attempt(2, 2, (OOM,))
    assert attempts.last(folder) == Attempt(2, 2, (OOM,))
    assert attempts.begin(None) == Attempt(1, 1)


@pytest.mark.parametrize("kind", ["dense", "experts", "act", "bk, act"])
def test_half_the_micro_batch_gives_the_same_losses(text: Path, tmp_path: Path, kind: str) -> None:
    """Four rows at once against twice two; halting amplifies the rounding of float32."""
    precision = "float64" if "act" in kind else "float32"
    knobs = {**KINDS[kind], "steps": 12, "eval_every": 12, "precision": precision}
    config = short_config(text, **knobs)
    whole = play(config, tmp_path / "whole")
    attempts.note(tmp_path / "split", OOM, splits=True)
    split = play(config, tmp_path / "split")
    assert of(TrialStarted, split)[0].split == 2
    assert of(TrialStarted, split)[0].trial_id == of(TrialStarted, whole)[0].trial_id
    losses = [window.loss_nats for window in of(StepsDone, whole)]
    for one, other in zip(losses, of(StepsDone, split), strict=True):
        assert other.loss_nats == pytest.approx(one, rel=1e-5)
    assert of(EvalDone, split)[0].loss_nats == pytest.approx(
        of(EvalDone, whole)[0].loss_nats, rel=1e-5
    )


def test_a_micro_batch_that_cannot_be_cut_evenly_is_refused(text: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus=str(text), batch_size=3)
    attempts.note(tmp_path, OOM, splits=True)
    with pytest.raises(ConfigError, match=r"batch_size=3 cannot be shared evenly"):
        next(run(config, tmp_path))


def test_a_continued_attempt_asks_whether_to_stop_before_it_trains(
    text: Path, tmp_path: Path
) -> None:
    config = short_config(text, checkpoint_every=10)
    play(config, tmp_path, kill_at=20)
    events: list[Any] = list(run(config, tmp_path, stop=lambda: ("pruned", "at step 10")))
    assert not of(StepsDone, events)
    ended = of(TrialEnded, events)[0]
    assert (ended.outcome, ended.step) == ("pruned", of(TrialStarted, events)[0].step)
    assert ended.step > 0


def test_the_best_checkpoint_is_that_of_the_best_evaluation(text: Path, tmp_path: Path) -> None:
    """With a loss that gets worse at the end, best and last differ."""
    config = short_config(
        text, lr=0.05, warmup_steps=0, steps=40, eval_every=5, checkpoint_every=10, clip_norm=9.0
    )
    events = play(config, tmp_path)
    losses = {event.step: event.loss_nats for event in of(EvalDone, events)}
    best_step = min(losses, key=losses.__getitem__)
    state = checkpoint.read(tmp_path / checkpoint.FOLDER / checkpoint.BEST)
    assert state["progress"]["step"] == best_step
    assert state["progress"]["final_val_loss_nats"] == losses[best_step]
