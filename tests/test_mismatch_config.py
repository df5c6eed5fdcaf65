"""The mismatch section: which of its knobs act, and what is refused."""

from typing import Any

import pytest

from bkray.config import STRATEGIES
from bkray.errors import ConfigError
from bkray.overrides import build, flatten, parse

SHORT = {"model.n_seq": 16, "mismatch.lengths": "32,64"}


def test_nothing_is_measured_unless_lengths_are_given() -> None:
    config = build({})
    assert config.mismatch.evaluated == config.mismatch.chosen == ()
    assert not [path for path in flatten(config) if path.startswith("mismatch")]


def test_strategies_act_where_a_length_is_longer() -> None:
    config = build(SHORT)
    assert config.mismatch.evaluated == (32, 64)
    assert config.mismatch.chosen == STRATEGIES
    assert config.mismatch.overlap == 0.5
    own = build({**SHORT, "model.n_seq": 16, "mismatch.lengths": "16"})
    assert (own.mismatch.strategies, own.mismatch.overlap) == (None, None)
    assert build(flatten(config)) == config and build(flatten(own)) == own


def test_one_length_is_a_number_on_the_command_line() -> None:
    assert build(parse(["n_seq=16", "mismatch.lengths=32"])).mismatch.evaluated == (32,)


def test_the_longest_length_of_a_ladder_is_what_others_are_multiples_of() -> None:
    config = build({"ladder.lengths": "8,16", "mismatch.lengths": "32"})
    assert config.model.n_seq == 16 and config.mismatch.chosen


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"mismatch.windows": 8, "mismatch.lengths": None}, r"nothing without mismatch\.lengths"),
        ({"mismatch.lengths": "24"}, r"multiples of model\.n_seq=16, got 24"),
        ({"mismatch.lengths": "8"}, r"multiples of model\.n_seq=16, got 8"),
        ({"mismatch.lengths": "64,32"}, r"must grow"),
        ({"mismatch.lengths": "many"}, r"mismatch\.lengths: .*got 'many'"),
        ({"mismatch.strategies": "truncate,guess"}, r"some of extrapolate, .*got 'guess'"),
        ({"mismatch.strategies": "truncate,truncate"}, r"names one twice"),
        ({"mismatch.strategies": "truncate", "mismatch.overlap": 0.5}, r"add sliding_window"),
        ({"mismatch.lengths": "16", "mismatch.strategies": "truncate"}, r"no length is longer"),
        ({"mismatch.lengths": "16", "mismatch.overlap": 0.2}, r"no length is longer"),
        ({"mismatch.overlap": 1.0}, r"mismatch\.overlap: .*< 1"),
        ({"mismatch.overlap": 0.99}, r"less than a token: lower it"),
        ({"mismatch.windows": 3}, r"mismatch\.windows: .*4"),
        ({"mismatch.items": 2}, r"mismatch\.items: .*4"),
        ({"model.depth": "act"}, r"need a built-in model with model\.depth=dense"),
        (
            {"model.mixer_scale": 2},
            r"do not go with model\.mixer_scale=2: reach is told in tokens",
        ),
        (
            {"model.multiscale": True, "model.n_layers": 3},
            r"do not go with model\.multiscale=True: reach is told",
        ),
        ({"model.length": "learned"}, r"need a built-in model"),
        ({"model.build": "own:model"}, r"need a built-in model"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build({**SHORT, **overrides})
