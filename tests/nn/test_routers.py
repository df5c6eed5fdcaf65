"""The scattering router by hand, and in a model. T tokens, E experts."""

import math
from typing import Any

import pytest
import torch
from tiny import random_tokens, tiny_config, tiny_model
from torch import Tensor

from bkray.errors import ConfigError
from bkray.nn.moe import Experts
from bkray.nn.routers import ScatteringRouter, calibrated
from bkray.train.step import losses

SCATTERING: dict[str, Any] = {"n_experts": 4, "router": "scattering"}


def phases(n_tokens: int = 4001) -> Tensor:
    """Crowded near pi, as those of a narrow band are."""
    draw = torch.Generator().manual_seed(0)
    return math.pi * torch.rand(n_tokens, generator=draw, dtype=torch.float64) ** 0.2


def test_a_token_goes_to_the_bin_of_its_phase() -> None:
    router = ScatteringRouter(4, 0, 0.5)
    quarter = math.pi / 4
    phase = torch.tensor([0.1, quarter + 0.1, 2 * quarter + 0.1, math.pi - 0.1])
    routes = router(phase, torch.zeros(4))
    assert routes.expert_P.tolist() == [0, 1, 2, 3]
    assert routes.weight_P.tolist() == [1.0] * 4
    assert not list(router.parameters())


def test_near_a_resonance_it_asks_the_nearer_neighbour_too() -> None:
    router = ScatteringRouter(4, 0, 0.5)
    quarter = math.pi / 4
    phase = torch.tensor([0.1, quarter + 0.1, 2 * quarter - 0.1, math.pi - 0.1, 0.1])
    routes = router(phase, torch.tensor([0.6, 0.6, 0.6, 0.6, 0.4]))
    pairs = list(zip(routes.token_P.tolist(), routes.expert_P.tolist(), strict=True))
    assert pairs[:5] == [(0, 0), (1, 1), (2, 1), (3, 3), (4, 0)]
    assert pairs[5:] == [(0, 1), (1, 0), (2, 2), (3, 2)], "the ends have one neighbour"
    assert routes.weight_P.tolist() == [0.5, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5]
    assert routes.probability_E.sum() == 5


def test_quantiles_share_the_tokens_evenly_and_stay() -> None:
    router, seen = ScatteringRouter(4, 0, 1.0), phases()
    none = torch.zeros_like(seen)
    before = router(seen, none).expert_P.bincount(minlength=4)
    assert before[3] > 0.6 * len(seen), "bins of equal width do not"
    with calibrated(router):
        after = router(seen, none).expert_P.bincount(minlength=4)
    assert (after - len(seen) / 4).abs().max() <= 1
    edges = router.edges.clone()
    router.train()(seen / 2, none)
    assert torch.equal(router.edges, edges), "nothing but calibration moves them"
    other = ScatteringRouter(4, 0, 1.0)
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.edges, edges), "a checkpoint has them"


@pytest.mark.parametrize("n_experts", [1, 2, 7])
def test_experts_say_what_the_plain_loop_says(n_experts: int) -> None:
    torch.manual_seed(0)
    router = ScatteringRouter(n_experts, 0, 0.5 if n_experts > 1 else 1.0)
    experts = Experts(8, 12, n_experts, None, router).double()
    x, phase = torch.randn(40, 8, dtype=torch.float64), phases(40)
    near = torch.rand(40, dtype=torch.float64)
    said, routing = experts(x, torch.stack([phase, near], -1))
    routes = router(phase, near)
    expected = torch.zeros_like(x)
    for token, expert, weight, _ in zip(*routes[:3], routes.token_P, strict=True):
        expected[token] += weight * experts.experts[int(expert)](x[token])
    assert (said - expected).abs().max() <= 1e-12
    assert routing.count_E.sum() == len(routes.token_P) >= 40


def scattering_model(**knobs: Any) -> Any:
    return tiny_model("bk", **SCATTERING, **knobs)


def test_a_model_is_calibrated_layer_by_layer() -> None:
    model, tokens = scattering_model(n_seq=128).eval(), random_tokens(4, 128)
    with torch.no_grad(), calibrated(model):
        first = model(tokens)
    with torch.no_grad():
        again = model(tokens)
    assert torch.equal(again.logits_BNV, first.logits_BNV), "each layer routes by its new bins"
    for routed in again.routing:
        assert (routed.probability_E / tokens.numel()).max() < 0.4


def test_the_balance_is_told_and_not_trained_on() -> None:
    model, tokens = scattering_model(), random_tokens(2, 16)
    knobs = tiny_config("bk", **SCATTERING).model
    assert (knobs.top_k, knobs.balance_weight) == (None, None)
    said = losses(model(tokens), tokens, knobs, None)
    assert 1 <= said["moe/balance"] <= 4
    assert not said["moe/balance"].requires_grad
    assert torch.equal(said["total"], said["loss_nats"])


def test_a_model_asks_more_experts_with_a_lower_resonance() -> None:
    tokens = random_tokens(2, 16)
    counts = [
        int(scattering_model(router_resonance=threshold)(tokens).routing[0].count_E.sum())
        for threshold in (0.0, 0.02, 1.0)
    ]
    assert counts[0] == 2 * tokens.numel()
    assert counts[0] > counts[1] > counts[2] == tokens.numel()


@pytest.mark.parametrize(
    ("mixer", "knobs", "said"),
    [
        ("attention", SCATTERING, r"router=scattering needs model\.mixer=bk, got attention"),
        ("bk", {"router": "scattering"}, r"model\.router=scattering does nothing with one expert"),
        ("bk", {**SCATTERING, "top_k": 2}, r"top_k=2 does nothing with model\.router=scattering"),
        ("bk", {**SCATTERING, "balance_weight": 0.1}, r"balance_weight=0\.1 does nothing with"),
        ("bk", {**SCATTERING, "router_head": 4}, r"router_head must be between 0 and 3, got 4"),
        ("bk", {**SCATTERING, "mixer_scale": 2}, r"scattering needs model\.mixer_scale=1, got 2"),
        ("bk", {"n_experts": 4, "router_head": 0}, r"set model\.router=scattering"),
    ],
)
def test_what_does_not_go_together_is_refused(mixer: str, knobs: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny_config(mixer, **knobs)
