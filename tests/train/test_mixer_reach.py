"""What is said of a model's reach is of the very weights that it mixes with."""

import pytest
import torch
from tiny import random_tokens, tiny_model

from bkray.nn.attention import AttentionMixer
from bkray.nn.bk import BKMixer
from bkray.nn.lm import sites_of
from bkray.train.reach import mean_reach


@pytest.mark.parametrize("position", ["rope", "none"])
def test_the_shares_are_those_that_attention_mixes_with(position: str) -> None:
    mixer = tiny_model("attention", position=position).blocks[0].mixer
    assert isinstance(mixer, AttentionMixer)
    hidden = torch.randn(2, 9, 16, dtype=torch.float64)
    share_BHQN = mixer.shares(hidden, sites_of(hidden), torch.arange(9))
    values = mixer.qkv(hidden).unflatten(-1, (3, 2, -1))[:, :, 2].transpose(1, 2)
    mixed = mixer.out((share_BHQN @ values).transpose(1, 2).flatten(-2))
    assert torch.allclose(mixed, mixer(hidden, sites_of(hidden)), atol=1e-10)


def test_the_green_function_is_the_one_that_bk_mixes_with() -> None:
    mixer = tiny_model("bk").blocks[0].mixer
    assert isinstance(mixer, BKMixer)
    hidden = torch.randn(2, 9, 16, dtype=torch.float64)
    scattered = mixer.scatter(hidden, sites_of(hidden), None, None, head=1)[2]
    phase = torch.angle(mixer.green(hidden)[:, :, 1])
    assert torch.allclose(phase, scattered[:, :, 0], atol=1e-10)


def test_attention_to_everything_alike_reaches_half_of_the_way() -> None:
    model = tiny_model("attention", position="none").eval()
    for block in model.blocks:
        torch.nn.init.zeros_(block.mixer.qkv.weight)
    seen = mean_reach(model, random_tokens(2, 8))
    assert seen is not None
    assert seen.tokens == pytest.approx((4 + 5 + 6 + 7) / 4 / 2)
    expected = torch.tensor([5.0, 6, 7, 8], dtype=torch.float64).log().mean()
    assert seen.entropy_nats == pytest.approx(float(expected))


def test_narrow_heads_of_bk_reach_further() -> None:
    model = tiny_model("bk").eval()
    told = []
    for raw in (2.0, -4.0):
        for block in model.blocks:
            torch.nn.init.constant_(block.mixer.raw_eta, raw)
        seen = mean_reach(model, random_tokens(2, 16))
        assert seen is not None
        told.append(seen)
    assert told[0].tokens < 1 < 2 < told[1].tokens
    assert told[0].entropy_nats < told[1].entropy_nats


def test_other_mixers_have_none() -> None:
    assert mean_reach(tiny_model("linear_recurrence").eval(), random_tokens(2, 8)) is None
