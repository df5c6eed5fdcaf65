"""Experts against a plain loop over tokens. T tokens, D width, E experts."""

import pytest
import torch
from torch import Tensor

from bkray.nn.moe import Experts, FeedForward

TOKENS, WIDTH = 40, 8


def experts_of(n_experts: int, top_k: int) -> Experts:
    torch.manual_seed(n_experts + 10 * top_k)
    return Experts(WIDTH, 12, n_experts, top_k).double()


def some_tokens() -> Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=draw)


def dense_form(experts: Experts, x_TD: Tensor) -> Tensor:
    rows = []
    for token in x_TD:
        probability = experts.router(token).softmax(-1)
        best = probability.argsort(descending=True)[: experts.top_k]
        rows.append(sum(probability[e] * experts.experts[int(e)](token) for e in best))
    return torch.stack(rows)  # type: ignore[arg-type]


SIZES = [(1, 1), (2, 1), (4, 1), (4, 2), (4, 4), (7, 3)]


@pytest.mark.parametrize(("n_experts", "top_k"), SIZES)
def test_says_what_the_dense_form_says(n_experts: int, top_k: int) -> None:
    experts, x = experts_of(n_experts, top_k), some_tokens()
    assert (experts(x)[0] - dense_form(experts, x)).abs().max() <= 1e-12


@pytest.mark.parametrize(("n_experts", "top_k"), SIZES)
def test_has_the_gradients_of_the_dense_form(n_experts: int, top_k: int) -> None:
    experts, x = experts_of(n_experts, top_k), some_tokens().requires_grad_()
    leaves = [x, *experts.parameters()]
    sparse = torch.autograd.grad(experts(x)[0].square().sum(), leaves)
    dense = torch.autograd.grad(
        dense_form(experts, x).square().sum(), leaves, allow_unused=True, materialize_grads=True
    )
    for said, expected in zip(sparse, dense, strict=True):
        assert (said - expected).abs().max() <= 1e-10


@pytest.mark.parametrize(("n_experts", "top_k"), SIZES)
def test_no_token_is_dropped_however_crowded_an_expert_is(n_experts: int, top_k: int) -> None:
    experts, x = experts_of(n_experts, top_k), some_tokens()
    routing = experts(x)[1]
    assert routing.count_E.sum() == TOKENS * top_k
    assert routing.count_E.max() <= TOKENS, "an expert is asked once per token"
    same = x[:1].expand(TOKENS, WIDTH)  # all want the same expert
    said, routing = experts(same)
    assert sorted(routing.count_E.tolist())[-top_k:] == [TOKENS] * top_k
    assert (said - dense_form(experts, same)).abs().max() <= 1e-12


def test_the_router_learns_also_with_one_expert_per_token() -> None:
    experts, x = experts_of(4, 1), some_tokens()
    torch.autograd.backward(experts(x)[0].square().sum())
    assert experts.router.weight.grad is not None
    assert (experts.router.weight.grad.abs().amax(1) > 1e-6).all()


def test_an_expert_that_nobody_asks_has_a_gradient_of_zero() -> None:
    experts, x = experts_of(3, 1), some_tokens()
    with torch.no_grad():
        experts.router.weight[2] = 0.0
        experts.router.weight[0] = torch.where(x[0] > 0, 50.0, -50.0)
    said, routing = experts(x[:1].expand(5, WIDTH))
    assert routing.count_E.tolist() == [5, 0, 0]
    torch.autograd.backward(said.sum())
    for parameter in experts.experts[2].parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@torch.no_grad()
def test_a_token_does_not_see_the_others() -> None:
    experts, x = experts_of(4, 2), some_tokens()
    whole = experts(x)[0]
    for t in (0, 17, TOKENS - 1):
        assert (experts(x[t : t + 1])[0] - whole[t]).abs().max() <= 1e-12


@torch.no_grad()
def test_a_nan_token_comes_out_as_nan_and_spoils_no_other() -> None:
    experts, x = experts_of(4, 2), some_tokens()
    x[9, 1] = torch.nan
    said = experts(x)[0]
    assert said[9].isnan().all()
    assert said.isfinite().sum() == (TOKENS - 1) * WIDTH


@torch.no_grad()
def test_no_token_at_all_is_no_error() -> None:
    said, routing = experts_of(3, 2)(some_tokens()[:0])
    assert said.shape == (0, WIDTH)
    assert routing.count_E.tolist() == [0, 0, 0]


def test_sums_over_parts_of_a_batch_add_up_to_the_whole() -> None:
    experts, x = experts_of(4, 2), some_tokens()
    whole, parts = experts(x)[1], [experts(part)[1] for part in x.split(13)]
    assert torch.equal(sum(part.count_E for part in parts), whole.count_E)
    summed = torch.stack([part.probability_E for part in parts]).sum(0)
    assert (summed - whole.probability_E).abs().max() <= 1e-12
    assert whole.probability_E.sum().item() == pytest.approx(TOKENS)


def test_a_feed_forward_part_acts_on_each_token_alone() -> None:
    torch.manual_seed(0)
    feed, x = FeedForward(WIDTH, 12).double(), some_tokens()
    expected = feed.down.weight @ torch.nn.functional.gelu(feed.up.weight @ x[3] + feed.up.bias)
    assert (feed(x)[3] - expected - feed.down.bias).abs().max() <= 1e-12
