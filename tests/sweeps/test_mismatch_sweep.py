"""The mismatch sweep as a value: its arms, and that they can be compared."""

from pathlib import Path
from typing import Any

import pytest

from bkray.cluster.schedulers import choose
from bkray.cluster.tuner import SweepOptions, planned
from bkray.config import STRATEGIES, TrialConfig
from bkray.errors import ConfigError
from bkray.rungs import rungs
from sweeps.mismatch import SWEEP


def configs(preset: str = "small", **overrides: Any) -> dict[str, TrialConfig]:
    options = SweepOptions(out=Path("none"), preset=preset, overrides=overrides)
    return {one.arm: one.config for one in planned(SWEEP, options)}


MODELS = ("attention-none", "attention-learned", "attention-rope", "bk-none", "bk-learned")


def test_every_model_is_trained_at_every_length() -> None:
    assert list(configs()) == [f"{model}-{n}" for model in MODELS for n in (256, 512)]
    assert len(configs("full")) == 5 * 4


def test_small_trains_the_seeds_that_verdicts_are_told_over() -> None:
    options = SweepOptions(out=Path("none"), preset="small")
    assert {one.n_seeds for one in planned(SWEEP, options)} == {3}


@pytest.mark.parametrize("preset", ["smoke", "small", "full"])
def test_lengths_train_and_validate_on_as_many_tokens(preset: str) -> None:
    found = configs(preset).values()
    assert len({rung.tokens_per_step for c in found for rung in rungs(c)}) == 1
    assert len({c.train.steps for c in found}) == 1
    assert len({(c.train.eval_windows * c.model.n_seq, c.train.eval_stretch) for c in found}) == 1
    assert len({(c.mismatch.windows, c.mismatch.items) for c in found}) == 1


def test_a_model_is_evaluated_from_its_own_length_on() -> None:
    found = configs(**{"model.n_seq": 128, "mismatch.lengths": "256,512"})
    seen = {n: found[f"bk-none-{n}"].mismatch for n in (128, 256, 512)}
    assert {n: one.evaluated for n, one in seen.items()} == {
        128: (256, 512),
        256: (256, 512),
        512: (512,),
    }
    assert [one.chosen for one in seen.values()] == [STRATEGIES, STRATEGIES, ()]


def test_what_is_chosen_goes_to_those_that_it_acts_in() -> None:
    found = configs(**{"mismatch.overlap": 0.25, "mismatch.strategies": "sliding_window"})
    assert found["bk-none-256"].mismatch.overlap == 0.25
    assert found["bk-none-512"].mismatch.overlap is None


def test_one_model_can_be_chosen() -> None:
    assert list(configs(**{"model.mixer": "bk"})) == [
        *("bk-none-256", "bk-none-512", "bk-learned-256", "bk-learned-512")
    ]
    rope = configs(**{"model.position": "rope"})
    assert list(rope) == ["attention-rope-256", "attention-rope-512"]


def test_rivals_are_compared_whole() -> None:
    assert choose(None, SWEEP) == "none"
    assert choose("asha", SWEEP) == "asha"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"mismatch.lengths": None}, r"give mismatch\.lengths=512"),
        ({"mismatch.lengths": "300"}, r"multiples of model\.n_seq=256"),
        ({"model.mixer": "bk", "model.position": "rope"}, r"no model with model\.mixer=bk and"),
        ({"model.mixer": "linear_recurrence"}, r"it knows attention with"),
        ({"train.batch_size": 1}, r"no whole rows of 512: raise it"),
        (
            {"model.n_seq": 128, "mismatch.lengths": "384,512", "train.batch_size": 12},
            r"mismatch\.lengths=384,512: 512 is no multiple of 384",
        ),
        ({"train.accumulation": 8}, r"must divide the rows a step of each length, got 4 of 512"),
        ({"train.eval_windows": 3}, r"eval_windows=3 rows of 256 .* a multiple of 2"),
        ({"model.depth": "act"}, r"need a built-in model with model\.depth=dense"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configs(**overrides)
