"""Lengths of a ladder: how many rows of each, how many at once, and which steps."""

from typing import Any

import pytest

from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.overrides import build
from bkray.rungs import reach, rung_at, rungs

CARRY = {"ladder.lengths": "128,512,2048", "ladder.mode": "carry", "train.batch_size": 2}


def config(**knobs: Any) -> TrialConfig:
    return build({**CARRY, **knobs})


def test_a_trial_without_a_ladder_has_one_rung() -> None:
    (rung,) = rungs(build({"train.batch_size": 12, "train.accumulation": 3}))
    assert rung == (128, 12, 4, 1, 400)


def test_every_rung_takes_equal_tokens_and_an_equal_share_of_the_steps() -> None:
    found = rungs(config(**{"train.steps": 10}))
    assert [rung.n_seq for rung in found] == [128, 512, 2048]
    assert {rung.tokens_per_step for rung in found} == {4096}
    assert [(rung.first_step, rung.last_step) for rung in found] == [(1, 3), (4, 6), (7, 10)]
    assert [rung_at(found, step).n_seq for step in (1, 3, 4, 10, 11)] == [
        128, 128, 512, 2048, 2048,
    ]  # fmt: skip


def test_rows_in_common_are_rows() -> None:
    assert {rung.batch_size for rung in rungs(config(**{"ladder.batch": "rows"}))} == {2}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("chunk", [None, 64, 256, 1024])
def test_no_rung_holds_more_than_the_longest(accumulation: int, chunk: int | None) -> None:
    found = rungs(config(**{"train.accumulation": accumulation, "train.chunk": chunk}))
    held = [rung.rows * min(rung.n_seq, chunk or rung.n_seq) for rung in found]
    assert max(held) == held[-1]
    assert all(2 * tokens > held[-1] for tokens in held)
    assert all(rung.batch_size % rung.rows == 0 for rung in found)


@pytest.mark.parametrize("lengths", ["100,128,700,1000,3000,131072", "7,30", "100,101"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("chunk", [None, 64, 4096])
def test_steps_of_any_lengths_hold_nearly_as_many_tokens(
    lengths: str, accumulation: int, chunk: int | None
) -> None:
    knobs = {"ladder.lengths": lengths, "train.accumulation": accumulation}
    longest = int(lengths.split(",")[-1])
    if chunk is not None and chunk < longest:
        knobs["train.chunk"] = chunk
    found = rungs(config(**knobs))
    whole = found[-1].tokens_per_step
    assert whole == 2 * longest
    for rung in found:
        assert abs(rung.tokens_per_step - whole) <= max(rung.n_seq * 2 / accumulation, whole / 50)
        assert whole % rung.n_seq or rung.tokens_per_step == whole or accumulation == 1
        assert rung.batch_size % rung.rows == 0
        held = [one.rows * min(one.n_seq, chunk or one.n_seq) for one in (rung, found[-1])]
        assert held[0] <= held[1]


def test_a_length_that_divides_takes_exactly_as_many_tokens() -> None:
    found = rungs(config(**{"ladder.lengths": "3,5,15", "train.chunk": 7, "train.batch_size": 1}))
    assert {rung.tokens_per_step for rung in found} == {15}


def test_the_longest_length_is_that_of_the_model() -> None:
    assert config().model.n_seq == 2048
    assert build({"ladder.lengths": 512}).ladder.rungs == (512,)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"ladder.lengths": "512,128"}, "must grow"),
        ({"ladder.lengths": "1,128"}, "from at least 2"),
        ({"ladder.lengths": "128,512", "model.n_seq": 1024}, "up to model.n_seq=1024"),
        ({"ladder.lengths": "128,x"}, "ladder.lengths"),
        ({"ladder.lengths": "64,128", "train.steps": 1}, "train.steps must be at least 2"),
        ({"ladder.mode": "carry"}, "ladder.mode does nothing without ladder.lengths"),
        ({**CARRY, "ladder.lr_rule": "search"}, "lr_rule=search does nothing with ladder.mode"),
        ({"train.eval_stretch": 100}, "at least model.n_seq=128"),
        ({"ladder.lengths": "128", "ladder.monitor": "both"}, "needs a monitor to be without"),
        ({"ladder.monitor": "both"}, "ladder.monitor does nothing without ladder.lengths"),
        ({"train.eval_stretch": 256, "train.eval_windows": 3}, "whole stretches of 2 windows"),
        ({"train.eval_stretch": 300, "train.eval_windows": 4}, "whole stretches of 3 windows"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(knobs)


@pytest.mark.parametrize(
    ("tried", "stable", "diverged"),
    [
        ([], None, None),
        ([(128, "ok"), (512, "ok")], 512, None),
        ([(128, "ok"), (512, "diverged"), (2048, "ok")], 128, 512),
        ([(128, "ok"), (512, "diverged"), (512, "ok"), (2048, "diverged")], 512, 2048),
        ([(128, "ok"), (512, "oom"), (512, "diverged"), (2048, "ok")], 2048, None),
        ([(128, "diverged"), (512, "ok")], None, 128),
    ],
)
def test_how_far_a_ladder_is_stable(
    tried: list[tuple[int, str]], stable: int | None, diverged: int | None
) -> None:
    assert reach(tried) == reach(reversed(tried)) == (stable, diverged)
