"""A trial that was stopped or killed goes on as if nothing had happened."""

from pathlib import Path

import pytest
import torch
from tiny import write_text
from trials import KINDS, KNOWN, numbers, of, play, short_config, weights

from bkray.errors import ResumeError
from bkray.events import (
    StepsDone,
    TrialEnded,
    TrialStarted,
    Warned,
)
from bkray.train import checkpoint
from bkray.trial import identify


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_resumed_trial_equals_the_undisturbed_one_bit_for_bit(
    text: Path, tmp_path: Path, kind: str, how: str
) -> None:
    """Stopped at the end of a window; killed six steps behind a checkpoint, twice."""
    config = short_config(text, **KINDS[kind])
    trial_id, _ = identify(config)
    whole = play(config, tmp_path / "whole", stop_at=40)
    folder = tmp_path / "parts"
    if how == "stopped":
        parts = play(config, folder, stop_at=16)
        assert of(TrialEnded, parts)[0].reason == "told to"
    else:
        parts = play(config, folder, kill_at=16)
        parts += play(config, folder, kill_at=32)
    torch.manual_seed(99)  # what another trial in this process leaves behind
    last = play(config, folder, stop_at=40)
    started = of(TrialStarted, last)[0]
    assert started.step == (16 if how == "stopped" else 30)
    assert started.attempt == (2 if how == "stopped" else 3)
    assert numbers(parts + last) == numbers(whole)
    expected, said = weights(tmp_path / "whole", trial_id), weights(folder, trial_id)
    assert all(torch.equal(said[name], expected[name]) for name in expected)
    # what was summed up over all attempts is the same too
    same = KNOWN - {"train_seconds", "tokens_per_second", "peak_memory_mib"}
    summaries = [of(TrialEnded, events)[0].summary for events in (whole, last)]
    assert {name: summaries[0][name] for name in same} == {
        name: summaries[1][name] for name in same
    }


def test_a_checkpoint_of_another_config_or_text_is_refused(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    play(short_config(text), folder, stop_at=10)
    with pytest.raises(ResumeError, match="belongs to trial"):
        play(short_config(text, lr=0.02), folder)
    other = write_text(tmp_path / "text.txt", seed=1)
    with pytest.raises(ResumeError, match="belongs to trial"):
        play(short_config(other), folder)


@pytest.mark.parametrize("n_damaged", [1, 2])
def test_a_trial_with_damaged_checkpoints_ends_like_an_undisturbed_one_and_warns(
    text: Path, tmp_path: Path, n_damaged: int
) -> None:
    config = short_config(text)
    whole = play(config, None)
    play(config, tmp_path, kill_at=35)
    folder = tmp_path / checkpoint.FOLDER
    for name in (checkpoint.NAME, checkpoint.PREVIOUS)[:n_damaged]:
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    events = play(config, tmp_path)
    (warned,) = of(Warned, events)
    assert "cannot be read" in warned.message
    assert (of(TrialStarted, events)[0].step > 0) == (n_damaged == 1)
    assert of(StepsDone, events)[-1].loss_nats == of(StepsDone, whole)[-1].loss_nats
    assert checkpoint.is_whole(folder / checkpoint.PREVIOUS), "no good one was overwritten"


def test_a_changed_text_is_another_trial(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    ids = []
    for seed in (0, 1):
        write_text(path, seed)
        ids.append(identify(short_config(path)))
    assert ids[0][0] != ids[1][0]
    assert ids[0][1] != ids[1][1]


def test_no_spike_is_lost_between_attempts(text: Path, tmp_path: Path) -> None:
    """A trial on the edge: whole or in parts, the count of spikes is the same."""
    config = short_config(text, lr=3.0, clip_norm=1e9, warmup_steps=0, seed=1)
    whole = play(config, None, stop_at=40)
    assert whole[-1].summary["spike_count"] > 0  # type: ignore[union-attr]
    play(config, tmp_path, stop_at=16)
    parts = play(config, tmp_path, stop_at=40)
    assert (
        parts[-1].summary["spike_count"]  # type: ignore[union-attr]
        == whole[-1].summary["spike_count"]  # type: ignore[union-attr]
    )
