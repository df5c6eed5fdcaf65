"""What context is worth: nothing to a model that mixes no tokens, its distance in a recall task.

Letters: W windows, N sites.
"""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, random_tokens, tiny_model
from torch import Tensor, nn
from torch.nn.functional import one_hot

from bkray.errors import ConfigError, DataError
from bkray.nn.lm import Carried, Prediction
from bkray.stats import holm
from bkray.train.context import ContextBenefit, context_benefit, shuffled
from bkray.train.worth import ALPHA, benefit_p, windows_needed, worths

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
    assert found.verdict == "flat"
    for one in found.benefits:
        for worth in (one.over_cut, one.over_shuffled):
            assert worth.p == 1 and worth.shown.mean == pytest.approx(0, abs=1e-6)


def test_a_mixing_model_that_has_learnt_nothing_is_flat_too() -> None:
    """It hears its context, which is random: none of 12 differences may stand out."""
    for seed in range(5):
        found = benefit_of(tiny_model("bk", seed=seed), *windows(n_windows=16))
        assert found.verdict == "flat"


def null_draws(n_draws: int, n_windows: int, n_differences: int) -> Iterator[list[list[float]]]:
    """Differences of heavy-tailed losses, all to the same one, that favour no sign."""
    draw = np.random.default_rng(5)
    for _ in range(n_draws):
        losses = draw.standard_t(2, size=(n_differences + 1, n_windows))
        yield (losses[1:] - losses[0]).tolist()


@pytest.mark.parametrize("n_windows", [8, 16])
def test_no_benefit_is_called_one_in_at_most_a_twentieth_of_draws(n_windows: int) -> None:
    assert windows_needed(12) == 8, "both numbers of windows decide"
    called = sum(
        any(holm([benefit_p(one) for one in draw], ALPHA))
        for draw in null_draws(200, n_windows, 12)
    )
    assert called <= 0.065 * 200


def test_a_benefit_of_every_window_is_seen_from_as_many_on_as_are_said_to_decide() -> None:
    for n_differences in (2, 6, 12, 20):
        needed = windows_needed(n_differences)
        other = [[-1.0] * needed] * (n_differences - 1)
        worth = worths([[0.1] * needed, *other])[0]
        assert worth.is_benefit and worth.p == 2.0**-needed
        assert not worths([[0.1] * (needed - 1), *(one[1:] for one in other)])[0].is_benefit


def test_the_second_of_a_family_is_held_against_a_laxer_level_than_the_first() -> None:
    second = [0.3, 0.3, 0.3, 0.3, 0.3, -0.1]  # 2 of 64 choices of signs are as far up
    assert [worth.p for worth in worths([[0.1] * 6, second])] == [1 / 64, 2 / 64]
    assert [worth.is_benefit for worth in worths([[0.1] * 6, second])] == [True, True]
    assert [worth.is_benefit for worth in worths([second, second])] == [False, False]


@pytest.mark.parametrize(
    ("n_windows", "verdict"), [(1, "undecided"), (7, "undecided"), (8, "benefit")]
)
def test_too_few_windows_are_undecided_whatever_they_show(n_windows: int, verdict: str) -> None:
    found = benefit_of(Recalls(lag=19), *windows(n_windows, period=20))
    assert found.verdict == verdict and found.n_windows_needed == 8
    nothing = benefit_of(Recalls(lag=64), *windows(n_windows, period=20))
    assert nothing.verdict == ("flat" if n_windows == 8 else "undecided")


def test_a_recall_task_shows_its_benefit_at_its_distance() -> None:
    """What comes next stood 20 sites before: distances up to 8 lack it, 32 and more have it.

    At 16 the later targets have 20 tokens and more: they lack it no more.
    """
    found = benefit_of(Recalls(lag=19), *windows(period=20))
    right = math.log(math.exp(SURE) + VOCABULARY - 1) - SURE
    assert found.loss_nats == pytest.approx(right, abs=1e-5)
    assert found.verdict == "benefit"
    worth = math.log(VOCABULARY) - right
    for one in found.benefits:
        cut, other = one.over_cut, one.over_shuffled
        if one.distance <= 8:
            assert cut.shown.mean == pytest.approx(worth, abs=1e-5)
            assert cut.is_benefit and other.is_benefit
            assert other.shown.mean > worth, "a false past is worse than none"
        if one.distance == 16:  # 16 to 23 tokens are kept, of which 20 are enough
            assert cut.shown.mean == pytest.approx(worth / 2, abs=1e-5)
        if one.distance >= 32:
            assert cut.shown.mean == other.shown.mean == 0
            assert not cut.is_benefit and not other.is_benefit
    assert [one.distance for one in found.benefits] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("mixer", ["bk", "linear_recurrence", "mamba", "attention"])
def test_rows_in_chunks_say_the_same(mixer: str) -> None:
    model = tiny_model(mixer, n_seq=64)
    whole = benefit_of(model, *windows())
    assert model.training
    for chunk in (5, 64):
        said = benefit_of(model, *windows(), chunk=chunk)
        assert said.loss_nats == pytest.approx(whole.loss_nats, abs=1e-10)
        for one, other in zip(said.benefits, whole.benefits, strict=True):
            for a, b in ((one.over_cut, other.over_cut), (one.over_shuffled, other.over_shuffled)):
                assert a.shown.mean == pytest.approx(b.shown.mean, abs=1e-10)


def test_only_the_past_is_shuffled_and_always_alike() -> None:
    tokens = random_tokens(3, 30)
    said = shuffled(tokens, 20)
    assert torch.equal(said, shuffled(tokens, 20))
    assert torch.equal(said[:, 20:], tokens[:, 20:])
    assert torch.equal(said[:, :20].sort(1).values, tokens[:, :20].sort(1).values)
    assert not torch.equal(said[:, :20], tokens[:, :20])
    assert torch.equal(shuffled(tokens, 0), tokens)


def test_a_difference_within_rounding_is_none() -> None:
    within, above = worths([[9e-6] * 20, [1.1e-5] * 20])
    assert (within.p, within.is_benefit) == (1.0, False)
    assert above.is_benefit


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
