"""Models of different mixers with as many parameters."""

import pytest
from tiny import MIXERS, tiny_config

from bkray.errors import ConfigError
from bkray.nn.equal import at_equal_parameters, n_params, with_mixer
from bkray.overrides import build, flatten

SIZE = {"model.d_model": 32, "model.n_layers": 2}


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_feed_forward_width_makes_up_for_the_mixer(mixer: str) -> None:
    target = n_params({**SIZE, "model.mixer": "bk"})
    found = at_equal_parameters({**SIZE, "model.mixer": mixer}, target)
    per_unit = 2 * 2 * 32  # two matrices in each of two layers
    assert abs(n_params(found) - target) <= per_unit / 2 + 2
    assert found["model.mixer"] == mixer


def test_what_no_width_can_make_up_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no model\.d_hidden gives 1,000 parameters"):
        at_equal_parameters(SIZE, 1000)


@pytest.mark.parametrize("mixer", MIXERS)
def test_another_mixer_takes_over_what_means_the_same_to_both(mixer: str) -> None:
    own = tiny_config(mixer, n_seq=48, d_hidden=400, dropout=0.1).model
    other = build(with_mixer(own, "bk")).model
    assert (other.mixer, other.d_model, other.n_seq, other.dropout) == ("bk", 16, 48, 0.1)
    if mixer == "bk":
        assert other == own
    else:
        assert (other.n_heads, other.position) == (16, "none")
        flat = flatten(tiny_config(mixer, n_seq=48, d_hidden=400, dropout=0.1))
        ours = {name: value for name, value in flat.items() if name.startswith("model.")}
        assert n_params(with_mixer(own, "bk")) == pytest.approx(n_params(ours), rel=0.02)
