"""Learned sparsity against a plain reference, and what its price does. Letters as in ``depth``."""

import itertools
from typing import Any

import pytest
import torch
from tiny import (
    GO,
    MIXERS,
    STOP,
    VOCABULARY,
    random_tokens,
    steer,
    tiny_config,
    tiny_model,
    uneven_rows,
)
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.nn.build import built_in
from bkray.nn.length import LearnedLength
from bkray.nn.lm import LanguageModel
from bkray.nn.sparsity import KEPT_AT_FIRST, SparseDepth
from bkray.train.step import losses

SITES, LAYERS = 16, 4
LEARNED = {"sparsity": "learned", "n_layers": LAYERS}


def choosy(mixer: str = "linear_recurrence", **knobs: Any) -> LanguageModel:
    """Return a model whose layers compute very different tokens."""
    model = tiny_model(mixer, **{**LEARNED, **knobs})
    steer(model)
    for scorer, bias in zip(depth_of(model).scorers, (-0.1, 0.3, 0.1), strict=True):
        nn.init.constant_(scorer.bias, bias)  # layers disagree on tokens that wish for little
    return model


def depth_of(model: LanguageModel) -> SparseDepth:
    assert isinstance(model.depth, SparseDepth)
    return model.depth


def plain_sparse(model: LanguageModel, tokens_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return states, layers and mean p, row by row, without padding or masks."""
    scorers = depth_of(model).scorers
    states, layers, probabilities = [], [], []
    for row in model.embed(tokens_BN):
        count = torch.ones(len(row), dtype=torch.long)
        row, p_of_row = model.blocks[0](row[None], torch.arange(len(row))[None], None)[0][0], []
        for block, scorer in zip(model.blocks[1:], scorers, strict=True):
            p = torch.stack([scorer(token).sigmoid()[0] for token in row])
            kept = [t for t in range(len(row)) if p[t] >= 0.5]
            if kept:
                out, _ = block(row[kept][None], torch.tensor([kept]), None)
                new = {t: row[t] + p[t] * (out[0, i] - row[t]) for i, t in enumerate(kept)}
                row = torch.stack([new.get(t, row[t]) for t in range(len(row))])
            count[kept] += 1
            p_of_row.append(p)
        states.append(row)
        layers.append(count)
        probabilities.append(torch.stack(p_of_row).mean())
    return torch.stack(states), torch.stack(layers), torch.stack(probabilities)


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("experts", [{}, {"n_experts": 3, "top_k": 2}], ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_sparsity_is_what_the_plain_reference_does(
    mixer: str, experts: dict[str, Any], training: bool
) -> None:
    model = choosy(mixer, **experts).train(training)
    tokens = torch.cat([uneven_rows(SITES), random_tokens(3, SITES, seed=8)])
    said = model(tokens)
    states, layers, probability = plain_sparse(model, tokens)
    assert torch.equal(said.layers_BN, layers)
    assert layers.unique().numel() >= 3, "layers must choose unevenly for this to mean much"
    assert (said.logits_BNV - model.read(states)).abs().max() <= 1e-10
    assert (said.sparsity.probability_B - probability).abs().max() <= 1e-12
    computed = (layers - 1).double().mean(1) / (LAYERS - 1)
    assert (said.sparsity.computed_B - computed).abs().max() <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_at_the_start_every_layer_computes_every_token(mixer: str) -> None:
    model = tiny_model(mixer, **LEARNED)
    said = model(random_tokens(3, SITES))
    assert (said.layers_BN == LAYERS).all()
    assert (said.sparsity.computed_B == 1).all()


@torch.no_grad()
def test_with_certain_scores_it_is_the_dense_model() -> None:
    model, dense = tiny_model(**LEARNED), tiny_model(n_layers=LAYERS)
    dense.load_state_dict(model.state_dict(), strict=False)
    for scorer in depth_of(model).scorers:
        nn.init.constant_(scorer.bias, 60.0)
    tokens = random_tokens(3, SITES)
    assert (model(tokens).logits_BNV - dense(tokens).logits_BNV).abs().max() <= 1e-12


@torch.no_grad()
def test_a_skipped_token_costs_nothing_and_is_back_at_the_next_layer() -> None:
    model, seen = choosy().eval(), []
    for scorer, bias in zip(depth_of(model).scorers, (0.0, 99.0, 0.0), strict=True):
        nn.init.constant_(scorer.bias, bias)
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    tokens = torch.full((1, SITES), GO)
    tokens[0, 3:9] = STOP
    assert model(tokens).layers_BN[0, 3:9].unique().tolist() == [2]
    assert seen == [SITES, SITES - 6, SITES, SITES - 6]


@torch.no_grad()
def test_a_layer_that_nobody_needs_is_not_run_in_evaluation() -> None:
    model, calls = choosy(n_experts=3), []
    model.blocks[2].register_forward_hook(lambda *_: calls.append(1))
    tokens = torch.full((2, SITES), STOP)
    trained = model(tokens)
    assert len(calls) == 1, "in training it is, on padding"
    said = model.eval()(tokens)
    assert len(calls) == 1
    assert (said.layers_BN == 1).all()
    assert (said.logits_BNV == trained.logits_BNV).all()
    for prediction in (trained, said):
        assert [int(r.count_E.sum()) for r in prediction.routing] == [2 * SITES, 0, 0, 0]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("experts", [{}, {"n_experts": 3}], ids=str)
def test_every_parameter_takes_part_in_every_backward_pass(
    mixer: str, experts: dict[str, Any]
) -> None:
    """Also where no token is computed: other processes wait for the gradients."""
    model = choosy(mixer, **experts)
    knobs = tiny_config(mixer, **LEARNED, **experts).model
    for tokens in (torch.full((2, SITES), STOP), uneven_rows(SITES)):
        model.zero_grad()
        torch.autograd.backward(losses(model(tokens), tokens, knobs, None)["total"])
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    for name, parameter in model.named_parameters():
        assert parameter.grad.any() or ".experts." in name, name


def test_the_scores_have_the_gradient_of_finite_differences() -> None:
    model, tokens = choosy(), random_tokens(2, SITES)
    knobs = tiny_config(**LEARNED, sparsity_lambda=0.3).model

    def total() -> Tensor:
        return losses(model(tokens), tokens, knobs, None)["total"]

    torch.autograd.backward(total())
    for scorer in depth_of(model).scorers:
        by_hand = []
        for change in (1e-6, -1e-6):
            with torch.no_grad():
                scorer.bias += change
                by_hand.append(total().item())
                scorer.bias -= change
        numeric = (by_hand[0] - by_hand[1]) / 2e-6
        assert scorer.bias.grad.item() == pytest.approx(numeric, rel=1e-4)


def test_the_loss_holds_the_price_of_computing() -> None:
    model, tokens = choosy(), uneven_rows(SITES)
    prediction = model(tokens)
    for price in (0.0, 0.5):
        knobs = tiny_config(**LEARNED, sparsity_lambda=price).model
        numbers = losses(prediction, tokens, knobs, None)
        extra = price * prediction.sparsity.probability_B.mean()
        assert (numbers["total"] - numbers["loss_nats"] - extra).abs() <= 1e-12
        assert numbers["sparsity/share_computed"] == prediction.sparsity.computed_B.mean()


def share_after_training(price: float) -> float:
    """Return the share that is computed after 100 steps; two tokens decide the next one."""
    model = tiny_model(dtype=torch.float32, **LEARNED)
    config = tiny_config(**LEARNED, sparsity_lambda=price).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    shares = []
    for step in range(100):
        sites = list(random_tokens(16, 2, seed=step).unbind(1))
        while len(sites) <= SITES:
            sites.append((2 * sites[-1] + 3 * sites[-2]) % VOCABULARY)
        tokens = torch.stack(sites, 1)
        numbers = losses(model(tokens[:, :-1]), tokens[:, 1:], config, None)
        optimizer.zero_grad()
        torch.autograd.backward(numbers["total"])
        optimizer.step()
        shares.append(float(numbers["sparsity/share_computed"]))
    return sum(shares[-10:]) / 10


def test_raising_the_price_lowers_the_share_computed() -> None:
    shares = [share_after_training(price) for price in (0.0, 0.05, 0.3)]
    for cheap, dear in itertools.pairwise(shares):
        assert dear <= cheap - 0.1, shares
    assert shares[0] > 0.8


def test_tokens_behind_a_cut_count_as_not_computed() -> None:
    knobs = {**LEARNED, "length": "learned", "length_list": "4,16", "length_train_cut": 0.5}
    torch.manual_seed(1)
    model = built_in(tiny_config(**knobs).model, VOCABULARY).double()
    assert isinstance(model, LearnedLength)
    nn.init.zeros_(model.predictor.down.weight)
    with torch.no_grad():
        model.predictor.down.bias.copy_(torch.tensor([9.0, 0.0]))
    said = model(random_tokens(8, SITES))
    assert said.lengths is not None
    assert sorted(said.lengths.computed_B.unique().tolist()) == [4, 16]
    share_B = said.lengths.computed_B.double() / SITES
    assert said.sparsity is not None
    assert (said.sparsity.computed_B - share_B).abs().max() <= 1e-12
    p = torch.tensor(KEPT_AT_FIRST, dtype=torch.float64).sigmoid()
    assert (said.sparsity.probability_B - p * share_B).abs().max() <= 1e-12
    assert said.sparsity.probability_B.requires_grad


@torch.no_grad()
def test_a_nan_score_is_computed_and_comes_out() -> None:
    model = choosy().eval()
    nn.init.constant_(depth_of(model).scorers[1].bias, torch.nan)
    assert model(random_tokens(2, SITES)).logits_BNV.isnan().all()


REFUSED = [
    ({"sparsity_lambda": 0.1}, r"sparsity_lambda=0\.1 does nothing .*off: set model\.sparsity=l"),
    ({"sparsity": "learned", "n_layers": 1}, r"sparsity=learned does nothing .*n_layers=1: .*"),
    ({**LEARNED, "depth": "act"}, r"sparsity=learned needs model\.depth=dense, got depth=act: bo"),
    ({**LEARNED, "depth": "exit"}, r"sparsity=learned needs model\.depth=dense, got depth=exit"),
    ({**LEARNED, "sparsity_lambda": -1}, r"sparsity_lambda: .*0.* <= sparsity_lambda.*got -1"),
    ({"sparsity": "some"}, r"sparsity: .*'off' or 'learned', got 'some'"),
]


@pytest.mark.parametrize(("knobs", "words"), REFUSED, ids=str)
def test_what_makes_no_sense_is_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(**knobs)
