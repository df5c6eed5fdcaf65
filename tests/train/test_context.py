"""What context is worth: nothing to a model that mixes no tokens, its distance in a recall task.

Letters: W windows, N sites.
"""

import math

import pytest
import torch
from tiny import VOCABULARY, random_tokens, tiny_model
from torch import Tensor, nn
from torch.nn.functional import one_hot

from bkray.errors import ConfigError, DataError
from bkray.nn.lm import Carried, Prediction
from bkray.stats import Interval
from bkray.train.context import ContextBenefit, context_benefit, is_benefit, shuffled

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)
SURE = 5.0


class Recalls(nn.Module):
    """Says with confidence that the token ``lag`` sites back comes next; without one, nothing."""

    def __init__(self, lag: int) -> None:
        super().__init__()
        self.lag, self.sure = lag, nn.Parameter(torch.tensor(SURE))

    def forward(self, tokens_BN: Tensor) -> Prediction:
        logits = self.sure * one_hot(tokens_BN, VOCABULARY).to(self.sure.dtype)
        silent = torch.zeros_like(logits[:, : self.lag])
        return Prediction(torch.cat([silent, logits], dim=1)[:, : tokens_BN.shape[1]])


def windows(n_windows: int = 24, n_sites: int = 64, period: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens; with a ``period`` each comes again so many sites on."""
    tokens = random_tokens(n_windows, n_sites + 1, seed=7)
    if period:
        tokens = tokens[:, :period].repeat(1, -(-(n_sites + 1) // period))[:, : n_sites + 1]
    return tokens[:, :-1], tokens[:, 1:]


def benefit_of(model: nn.Module, *sides: Tensor, chunk: int | None = None) -> ContextBenefit:
    return context_benefit(model, *sides, batch_size=7, autocast=OFF, chunk=chunk)


def test_a_model_that_mixes_no_tokens_is_flat() -> None:
    model = nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY))

    class Unmixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, tokens: Tensor) -> Prediction:
            return Prediction(self.inner(tokens))

    found = benefit_of(Unmixed(), *windows())
    assert found.is_flat
    for one in found.benefits:
        for interval in (one.over_cut, one.over_shuffled):
            assert interval.low is not None and interval.high is not None
            assert interval.low - 1e-6 <= 0 <= interval.high + 1e-6


def test_a_mixing_model_that_has_learnt_nothing_is_flat_too() -> None:
    """It hears its context, which is random: 12 intervals of each model must all hold 0."""
    for seed in range(5):
        assert benefit_of(tiny_model("bk", seed=seed), *windows(n_windows=40)).is_flat


def test_a_recall_task_shows_its_benefit_at_its_distance() -> None:
    """What comes next stood 20 sites before: distances up to 8 lack it, 32 and more have it.

    At 16 the later targets have 20 tokens and more: they lack it no more.
    """
    found = benefit_of(Recalls(lag=19), *windows(period=20))
    right = math.log(math.exp(SURE) + VOCABULARY - 1) - SURE
    assert found.loss_nats == pytest.approx(right, abs=1e-5)
    assert not found.is_flat
    worth = math.log(VOCABULARY) - right
    for one in found.benefits:
        if one.distance <= 8:
            assert one.over_cut.mean == pytest.approx(worth, abs=1e-5)
            assert is_benefit(one.over_cut) and is_benefit(one.over_shuffled)
            assert one.over_shuffled.mean > worth, "a false past is worse than none"
        if one.distance == 16:  # 16 to 23 tokens are kept, of which 20 are enough
            assert one.over_cut.mean == pytest.approx(worth / 2, abs=1e-5)
        if one.distance >= 32:
            assert one.over_cut.mean == one.over_shuffled.mean == 0
            assert not is_benefit(one.over_cut) and not is_benefit(one.over_shuffled)
    assert [one.distance for one in found.benefits] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("mixer", ["bk", "linear_recurrence", "attention"])
def test_rows_in_chunks_say_the_same(mixer: str) -> None:
    model = tiny_model(mixer, n_seq=64)
    whole = benefit_of(model, *windows())
    assert model.training
    for chunk in (5, 64):
        said = benefit_of(model, *windows(), chunk=chunk)
        assert said.loss_nats == pytest.approx(whole.loss_nats, abs=1e-10)
        for one, other in zip(said.benefits, whole.benefits, strict=True):
            assert one.over_cut.mean == pytest.approx(other.over_cut.mean, abs=1e-10)
            assert one.over_shuffled.mean == pytest.approx(other.over_shuffled.mean, abs=1e-10)


def test_only_the_past_is_shuffled_and_always_alike() -> None:
    tokens = random_tokens(3, 30)
    said = shuffled(tokens, 20)
    assert torch.equal(said, shuffled(tokens, 20))
    assert torch.equal(said[:, 20:], tokens[:, 20:])
    assert torch.equal(said[:, :20].sort(1).values, tokens[:, :20].sort(1).values)
    assert not torch.equal(said[:, :20], tokens[:, :20])
    assert torch.equal(shuffled(tokens, 0), tokens)


def test_a_difference_within_rounding_and_a_single_window_tell_nothing() -> None:
    assert not is_benefit(Interval(1e-6, 9e-7, 2e-6, 40))
    assert not is_benefit(Interval(1.0, None, None, 1))
    assert is_benefit(Interval(0.1, 0.05, 0.2, 40))


def test_what_cannot_be_told_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="windows of 1 sites have no past"):
        benefit_of(tiny_model(), *windows(n_sites=1))
    with pytest.raises(ConfigError, match="takes whole rows alone"):
        benefit_of(Recalls(3), *windows(), chunk=8)
    broken = tiny_model()
    with torch.no_grad():
        broken.head.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        benefit_of(broken, *windows())


def test_the_first_chunk_starts_at_the_start() -> None:
    seen: list[int] = []
    model = tiny_model("bk")

    def look(_: nn.Module, args: tuple[Tensor, Carried]) -> None:
        seen.append(args[1].n_sites)

    model.register_forward_pre_hook(look)
    benefit_of(model, *windows(n_windows=2, n_sites=16), chunk=4)
    assert seen[:3] == [0, 4, 8]
