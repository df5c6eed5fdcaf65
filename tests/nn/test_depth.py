"""Depth policies against a plain reference: one row, one list of running tokens, one Python loop.

Letters: B batch, N sites, D width.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from tiny import GO, MIXERS, STOP, random_tokens, steer, tiny_config, tiny_model, uneven_rows
from torch import Tensor, nn

from bkray.nn.act import ActDepth, HaltingUnit
from bkray.nn.depth import Deep, DenseDepth
from bkray.nn.lm import LanguageModel
from bkray.train.step import losses

SITES, WIDTH, LAYERS = 16, 16, 4
EXPERTS: tuple[dict[str, Any], ...] = ({}, {"n_experts": 3, "top_k": 2})


class Still(nn.Module):
    """A block that leaves its tokens as they are."""

    feed_forward = None

    def forward(self, hidden: Tensor, position: Tensor, running: Tensor | None) -> Any:
        return hidden, None


def still_depth(*logits: float, threshold: float = 0.99) -> tuple[ActDepth, list[Still]]:
    """Return ACT over blocks that do nothing, halting with ``logits`` at every token."""
    depth = ActDepth(WIDTH, len(logits) + 1, threshold).double()
    for unit, logit in zip(depth.halting, logits, strict=True):
        nn.init.zeros_(unit.down.weight)
        nn.init.constant_(unit.down.bias, logit)
    return depth, [Still() for _ in range(len(logits) + 1)]


def states(n_rows: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(n_rows, SITES, WIDTH, dtype=torch.float64, generator=draw)
    return hidden, torch.arange(SITES).expand(n_rows, SITES)


def plain_act(model: LanguageModel, hidden_BND: Tensor, position_BN: Tensor) -> Deep:
    """Return what ACT means, token by token, without batches, padding or masks."""
    depth = model.depth
    assert isinstance(depth, ActDepth)
    total_BND = torch.zeros_like(hidden_BND)
    layers_BN = torch.zeros_like(position_BN)
    remainder_BN = torch.zeros(position_BN.shape, dtype=hidden_BND.dtype)
    for row in range(len(hidden_BND)):
        running = list(range(hidden_BND.shape[1]))
        state = {t: hidden_BND[row, t] for t in running}
        reached = dict.fromkeys(running, 0.0)
        for layer, block in enumerate(model.blocks, start=1):
            if not running:
                break
            part = torch.stack([state[t] for t in running])[None]
            out, _ = block(part, position_BN[row, running][None], None)
            still = []
            for place, t in enumerate(running):
                state[t] = out[0, place]
                last = layer == len(model.blocks)
                p = 1.0 if last else float(depth.halting[layer - 1](state[t][None]).sigmoid())
                if last or reached[t] + p >= depth.threshold:
                    remainder_BN[row, t] = 1 - reached[t]
                    layers_BN[row, t] = layer
                    total_BND[row, t] += (1 - reached[t]) * state[t]
                else:
                    reached[t] += p
                    total_BND[row, t] += p * state[t]
                    still.append(t)
            running = still
    return Deep(total_BND, layers_BN, remainder_BN, ())


@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.6, 0.9, 1.0])
@pytest.mark.parametrize(("mixer", "experts"), list(itertools.product(MIXERS, EXPERTS)))
def test_act_says_what_the_plain_reference_says(
    mixer: str, experts: dict[str, Any], threshold: float
) -> None:
    model = tiny_model(mixer, depth="act", n_layers=LAYERS, act_threshold=threshold, **experts)
    steer(model)
    tokens = torch.cat([uneven_rows(SITES), random_tokens(3, SITES, seed=8)])
    hidden = model.embedding(tokens)
    position = torch.arange(SITES).expand_as(tokens)
    said = model.depth(list(model.blocks), hidden, position)
    expected = plain_act(model, hidden, position)
    assert torch.equal(said.layers_BN, expected.layers_BN)
    assert said.layers_BN.unique().numel() >= 3, "rows must halt unevenly for this to mean much"
    assert (said.hidden_BND - expected.hidden_BND).abs().max() <= 1e-10
    assert (said.remainder_BN - expected.remainder_BN).abs().max() <= 1e-10


@torch.no_grad()
@pytest.mark.parametrize("experts", EXPERTS)
def test_a_stopped_token_is_invisible_to_deeper_layers(experts: dict[str, Any]) -> None:
    """Put other states in place of stopped tokens behind layer 1: no running token may notice."""
    model = tiny_model(depth="act", **experts)
    steer(model)
    for unit in model.depth.halting:  # type: ignore[union-attr]
        nn.init.constant_(unit.down.bias, -30.0)  # GO goes on with p = 1e-13
    tokens = torch.full((1, SITES), GO)
    tokens[0, 3:9] = STOP
    position = torch.arange(SITES).expand_as(tokens)
    hidden, _ = model.blocks[0](model.embedding(tokens), position, None)
    going = tokens[0] == GO
    alone = hidden[:, going]
    for block in model.blocks[1:]:
        alone, _ = block(alone, position[:, going], None)
    said = model.depth(list(model.blocks), model.embedding(tokens), position)
    assert (said.hidden_BND[:, going] - alone).abs().max() <= 1e-11
    with_all, _ = model.blocks[1](hidden, position, None)
    without, _ = model.blocks[1](hidden[:, going], position[:, going], None)
    assert (with_all[:, going] - without).abs().max() > 1e-3, "they would be heard if there"


@torch.no_grad()
def test_the_weights_of_a_token_add_up_to_one() -> None:
    """Where blocks change nothing, the weighted sum is the input, and only if weights sum to 1."""
    hidden, position = states()
    for logits in ((0.0, 0.0, 0.0), (-3.0, 2.0, -1.0), (9.0, 0.0), (-40.0, -40.0)):
        for threshold in (0.2, 0.7, 0.99, 1.0):
            depth, blocks = still_depth(*logits, threshold=threshold)
            said = depth(blocks, hidden, position)  # type: ignore[arg-type]
            assert (said.hidden_BND - hidden).abs().max() <= 1e-15
    depth, blocks = still_depth(0.0, 0.0)
    nn.init.normal_(depth.halting[0].down.weight, std=5.0)
    said = depth(blocks, hidden, position)  # type: ignore[arg-type]
    assert said.layers_BN.unique().numel() > 1
    assert (said.hidden_BND - hidden).abs().max() <= 1e-15


@torch.no_grad()
def test_a_token_stops_at_the_first_layer_that_reaches_the_threshold() -> None:
    hidden, position = states()
    half = 0.0  # the logit of p = 0.5: sums 0.5, 1.0, 1.5 are exact
    for threshold, layers in ((0.4, 1), (0.5, 1), (0.51, 2), (1.0, 2)):
        depth, blocks = still_depth(half, half, half, threshold=threshold)
        said = depth(blocks, hidden, position)  # type: ignore[arg-type]
        assert (said.layers_BN == layers).all(), threshold
        assert (said.remainder_BN == 1.0 - 0.5 * (layers - 1)).all()


@torch.no_grad()
def test_the_threshold_can_be_changed_on_a_trained_model() -> None:
    model = tiny_model(depth="act", n_layers=LAYERS)
    steer(model)
    layers = []
    for model.depth.threshold in (0.05, 0.5, 0.9, 1.0):  # type: ignore[union-attr]
        layers.append(float(model(uneven_rows(SITES)).layers_BN.double().mean()))
    assert layers == sorted(layers)
    assert layers[0] < layers[-1]


@torch.no_grad()
def test_with_nobody_stopping_act_runs_every_layer_and_is_dense_at_the_last() -> None:
    for mixer in MIXERS:
        model, dense = tiny_model(mixer, depth="act"), tiny_model(mixer)
        for unit in model.depth.halting:  # type: ignore[union-attr]
            nn.init.constant_(unit.down.bias, -60.0)
        dense.load_state_dict(model.state_dict(), strict=False)
        tokens = random_tokens(3, SITES)
        said, expected = model(tokens), dense(tokens)
        assert (said.layers_BN == 3).all()
        assert (said.remainder_BN == 1).all()
        assert (said.logits_BNV - expected.logits_BNV).abs().max() <= 1e-12


@torch.no_grad()
def test_with_everybody_stopping_at_once_act_is_one_layer() -> None:
    model, one = tiny_model(depth="act"), tiny_model(n_layers=1)
    for unit in model.depth.halting:  # type: ignore[union-attr]
        nn.init.constant_(unit.down.bias, 60.0)
    one.load_state_dict(model.state_dict(), strict=False)
    tokens, calls = random_tokens(3, SITES), []
    model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    said = model(tokens)
    assert (said.layers_BN == 1).all()
    assert not calls, "a layer that nobody reaches is not run"
    assert (said.logits_BNV - one(tokens).logits_BNV).abs().max() <= 1e-12


@torch.no_grad()
def test_the_remainder_is_above_0_and_at_most_1() -> None:
    for threshold in (0.3, 0.99, 1.0):
        model = tiny_model(depth="act", n_layers=LAYERS, act_threshold=threshold)
        steer(model)
        remainder = model(uneven_rows(SITES)).remainder_BN
        assert remainder.min() > 0
        assert remainder.max() <= 1


@pytest.mark.parametrize("n_layers", [2, 3, 4, 8])
def test_halting_starts_at_one_over_the_layers(n_layers: int) -> None:
    unit = HaltingUnit(WIDTH, n_layers)
    p = unit(torch.randn(5, WIDTH)).sigmoid()
    assert (p - 1 / n_layers).abs().max() <= 1e-6


def test_the_ponder_cost_reaches_every_halting_unit_that_sends_tokens_on() -> None:
    model = tiny_model(depth="act", n_layers=LAYERS)
    prediction = model(random_tokens(2, SITES))  # p = 1/4 everywhere: all stop at the last layer
    torch.autograd.backward((prediction.layers_BN + prediction.remainder_BN).mean())
    for unit in model.depth.halting:  # type: ignore[union-attr]
        # more halting, less remainder: the cost falls as the bias rises
        assert unit.down.bias.grad < 0


def test_more_pondering_costs_more_so_the_gradient_is_that_of_finite_differences() -> None:
    model = tiny_model(depth="act")
    knobs = tiny_config(depth="act", act_lambda=0.3).model
    tokens = random_tokens(2, SITES)

    def total() -> Tensor:
        return losses(model(tokens), tokens, knobs, None)["total"]

    torch.autograd.backward(total())
    for unit in model.depth.halting:  # type: ignore[union-attr]
        by_hand = []
        for change in (1e-5, -1e-5):
            with torch.no_grad():
                unit.down.bias += change
                by_hand.append(total().item())
                unit.down.bias -= change
        assert unit.down.bias.grad.item() == pytest.approx(
            (by_hand[0] - by_hand[1]) / 2e-5, rel=1e-5
        )


def test_a_token_that_stops_at_layer_1_gives_its_halting_unit_no_gradient() -> None:
    model = tiny_model(depth="act")
    for unit in model.depth.halting:  # type: ignore[union-attr]
        nn.init.normal_(unit.down.weight, std=0.1)
        nn.init.constant_(unit.down.bias, 6.0)  # sigmoid(6) = 0.998, not yet flat
    knobs = tiny_config(depth="act", act_lambda=0.1).model
    tokens = random_tokens(2, SITES)
    prediction = model(tokens)
    assert (prediction.layers_BN == 1).all()
    torch.autograd.backward(losses(prediction, tokens, knobs, None)["total"])
    for name, parameter in model.depth.named_parameters():  # type: ignore[union-attr]
        assert parameter.grad is None or not parameter.grad.any(), name


def test_gradients_flow_through_gathered_rows_as_through_the_plain_reference() -> None:
    model = tiny_model("linear_recurrence", depth="act", n_experts=2)
    steer(model)
    tokens = uneven_rows(SITES)
    torch.autograd.backward(model(tokens).logits_BNV.square().sum())
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row in tokens:
        torch.autograd.backward(model(row[None]).logits_BNV.square().sum())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            error = (parameter.grad - together[name]).abs().max()
            assert error <= 1e-10 * max(1.0, float(together[name].abs().max())), name


@torch.no_grad()
@pytest.mark.parametrize("depth", [DenseDepth(), ActDepth(WIDTH, 3, 0.9).double()])
def test_a_nan_in_comes_out_at_its_token(depth: Any) -> None:
    hidden, position = states()
    hidden[0, 4, 2] = torch.nan
    said = depth([Still(), Still(), Still()], hidden, position)
    assert said.hidden_BND[0, 4].isnan().any()
    said.hidden_BND[0, 4] = 0.0
    assert said.hidden_BND.isfinite().all()


@torch.no_grad()
def test_a_nan_halting_unit_is_told_and_not_repaired() -> None:
    hidden, position = states()
    depth, blocks = still_depth(math.nan, 0.0)
    said = depth(blocks, hidden, position)  # type: ignore[arg-type]
    assert said.hidden_BND.isnan().all()
    assert said.remainder_BN.isnan().all()
    assert (said.layers_BN == 3).all()


@torch.no_grad()
def test_padding_is_seen_by_no_expert() -> None:
    model = tiny_model(depth="act", n_experts=3, top_k=2)
    steer(model)
    seen = [0] * len(model.blocks)
    for layer, block in enumerate(model.blocks):
        for expert in block.feed_forward.experts:

            def count(_: nn.Module, args: Any, layer: int = layer) -> None:
                seen[layer] += len(args[0])

            expert.register_forward_pre_hook(count)
    prediction = model(uneven_rows(SITES))
    running = [int((prediction.layers_BN > layer).sum()) for layer in range(3)]
    assert running[0] > running[1] > running[2] > 0
    assert seen == [2 * n for n in running]
    assert [int(routed.count_E.sum()) for routed in prediction.routing] == seen
    for routed, n in zip(prediction.routing, running, strict=True):
        assert routed.probability_E.sum().item() == pytest.approx(n, abs=1e-10)


@torch.no_grad()
def test_layers_that_nobody_reaches_have_a_routing_of_zeros() -> None:
    model = tiny_model(depth="act", n_experts=3)
    for unit in model.depth.halting:  # type: ignore[union-attr]
        nn.init.constant_(unit.down.bias, 60.0)
    routing = model(random_tokens(2, SITES)).routing
    assert len(routing) == 3, "one entry per layer with experts"
    assert [int(routed.count_E.sum()) for routed in routing] == [2 * SITES, 0, 0]


# torch's attention itself multiplies a later NaN by a weight of 0, so it is no case for this.
@pytest.mark.parametrize("mixer", ["bk", "linear_recurrence", "mamba"])
def test_a_nan_does_not_reach_tokens_that_stopped_before_it(mixer: str) -> None:
    """Behind a row's running tokens lie stopped ones as padding, which a mixer fills with NaN."""
    model = tiny_model(mixer, depth="act")
    steer(model)
    broken = 5
    with torch.no_grad():
        model.embedding.weight[broken] = torch.nan
    tokens_BN = torch.full((2, 8), GO)
    tokens_BN[0, :3], tokens_BN[0, 6] = STOP, broken
    logits_BNV = model(tokens_BN).logits_BNV
    assert logits_BNV[0, :6].isfinite().all()
    assert logits_BNV[0, 6:].isnan().all()
    assert logits_BNV[1].isfinite().all()
