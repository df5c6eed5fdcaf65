"""The guides' model with early exit. Letters: B batch, N sites, V vocabulary."""

import copy
import math
from typing import Any

import pytest
import torch
from guided import D, N, V, tokens
from torch import nn

from bkray.errors import ConfigError
from bkray.guides import AdaptiveSequenceLengthWrapper, EarlyExitLanguageModel
from bkray.nn.build import language_model
from bkray.overrides import build

LAYERS = 3
UNEVEN = 0.06
"""Tokens of the untrained model are so sure behind any of its layers."""


def leaving(**knobs: Any) -> EarlyExitLanguageModel:
    """Return a model in float64 and evaluation mode that tokens leave at all its layers."""
    torch.manual_seed(0)
    given = {"d_model": D, "n_layers": LAYERS, "n_seq": N, "confidence_threshold": UNEVEN}
    return EarlyExitLanguageModel(V, **{**given, **knobs}).double().eval()


@torch.no_grad()
def test_who_leaves_where_is_told() -> None:
    model = leaving()
    assert (model.d_model, model.n_layers, model.n_seq, model.vocab_size) == (D, LAYERS, N, V)
    assert len(model.blocks) == LAYERS
    logits, info = model(tokens(), use_early_exit=True)
    layers = info["exit_layers"]
    assert logits.shape == (3, N, V)
    assert set(layers.unique().tolist()) == {1, 2, 3}
    assert torch.equal(info["exited_mask"], layers < LAYERS)
    assert torch.equal(info["exit_confidences"], logits.softmax(-1).amax(-1))
    assert (info["exit_confidences"][info["exited_mask"]] >= UNEVEN).all()


@torch.no_grad()
@pytest.mark.parametrize("heads", ["own", "shared"])
def test_the_model_is_that_of_its_config(heads: Any) -> None:
    model = leaving(exit_heads=heads)
    knobs = {"d_model": D, "n_layers": LAYERS, "n_seq": N, "position": "learned", "n_experts": 4}
    exits = {"depth": "exit", "exit_heads": heads, "exit_threshold": UNEVEN, "dropout": 0.1}
    config = build({f"model.{name}": value for name, value in {**knobs, **exits}.items()})
    twin = language_model(config.model, V).double().eval()
    twin.load_state_dict(model.language_model.state_dict())
    logits, info = model(tokens(), use_early_exit=True)
    said = twin(tokens())
    assert torch.equal(said.logits_BNV, logits)
    assert torch.equal(said.layers_BN, info["exit_layers"])


@torch.no_grad()
def test_the_threshold_acts_at_once_and_at_its_highest_nobody_leaves() -> None:
    model, x = leaving(), tokens()
    whole = model(x, use_early_exit=False)
    for threshold, layers in ((1e-9, 1), (1.0, LAYERS)):
        model.confidence_threshold = threshold
        logits, info = model(x, use_early_exit=True)
        assert (info["exit_layers"] == layers).all()
    assert (logits - whole).abs().max() <= 1e-10
    model.confidence_threshold = 1e-9
    assert torch.equal(model(x), whole), "unasked, nobody leaves"


@torch.no_grad()
def test_the_histogram_adds_up() -> None:
    model = leaving()
    fresh = model.get_exit_statistics()
    assert fresh["total_tokens_processed"] == 0
    assert math.isnan(fresh["avg_exit_layer"])
    model.train()(tokens(), use_early_exit=True)
    model.eval()(tokens())
    assert model.get_exit_statistics()["total_tokens_processed"] == 0
    runs = [model(tokens(seed=s), use_early_exit=True)[1]["exit_layers"] for s in range(2)]
    layers = torch.cat(runs).double()
    said = model.get_exit_statistics()
    assert said["total_tokens_processed"] == layers.numel()
    shares = [100 * (layers == depth).double().mean().item() for depth in range(LAYERS + 1)]
    assert said["exit_distribution"] == pytest.approx(shares)
    assert said["avg_exit_layer"] == pytest.approx(layers.mean().item())
    assert said["speedup_estimate"] == pytest.approx(LAYERS / layers.mean().item())
    model.reset_exit_statistics()
    assert model.get_exit_statistics()["total_tokens_processed"] == 0


def test_the_loss_is_a_mean_over_all_heads() -> None:
    model, x, y = leaving(dropout_p=0.0, exit_weight=0.5).train(), tokens(), tokens(seed=1)
    logits, info = model(x, use_early_exit=True)
    exits = info["prediction"].exits
    assert len(exits) == LAYERS - 1
    heads = [nn.functional.cross_entropy(z.flatten(0, 1), y.flatten()) for z in (*exits, logits)]
    total, ce = model.compute_loss(logits, y.flatten(), info)
    assert ce.item() == pytest.approx(heads[-1].item())
    assert total.item() == pytest.approx(((0.5 * (heads[0] + heads[1]) + heads[2]) / 2).item())
    model.exit_weight = 1.0
    total, _ = model.compute_loss(logits, y, info)
    assert total.item() == pytest.approx(sum(heads).item() / LAYERS)  # type: ignore[union-attr]
    torch.autograd.backward(total)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    plain = model.compute_loss(model(x), y)
    assert plain[0].item() == plain[1].item() == pytest.approx(heads[-1].item())
    with pytest.raises(ConfigError, match=r"one token for each of the 72 logits"):
        model.compute_loss(logits, y[0], info)


@torch.no_grad()
def test_sites_that_a_learned_length_cuts_away_ran_through_no_layer() -> None:
    model = leaving()
    wrapped = AdaptiveSequenceLengthWrapper(model, N, 4).double().eval()
    _, info = wrapped(tokens(), use_adaptive_length=True)
    wrapped.length_predictor.length_bins = torch.tensor([6, 24])
    wrapped.length_predictor.num_length_bins = 2
    nn.init.constant_(wrapped.length_predictor.predictor.down.bias[:1], 100.0)
    model.reset_exit_statistics()
    _, info = wrapped(tokens(), use_adaptive_length=True)
    assert info["avg_predicted_length"] == 6
    said = model.get_exit_statistics()
    assert said["exit_distribution"][0] == pytest.approx(75)
    assert said["total_tokens_processed"] == 3 * N
    mean = info["prediction"].layers_BN.double().mean().item()
    assert said["avg_exit_layer"] == pytest.approx(mean)


@torch.no_grad()
def test_a_model_can_be_copied_and_refuses_what_is_too_long() -> None:
    model = leaving()
    model(tokens(), use_early_exit=True)
    twin = copy.deepcopy(model)
    assert twin.get_exit_statistics() == model.get_exit_statistics()
    assert torch.equal(twin(tokens()), model(tokens()))
    for asked in (True, False):
        with pytest.raises(ConfigError, match=r"at most n_seq=24 tokens, got 25"):
            model(tokens(1, N + 1), use_early_exit=asked)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (
            {"confidence_threshold": 0.0},
            r"^confidence_threshold must be above 0 and at most 1, got",
        ),
        ({"confidence_threshold": 1.5}, r"at most 1, got 1.5"),
        ({"confidence_threshold": math.nan}, r"at most 1, got nan"),
        ({"n_layers": 1}, r"n_layers=1"),
        ({"exit_weight": -1.0}, r"^exit_weight: .*got -1"),
        ({"exit_heads": "none"}, r"^exit_heads: .*'shared' or 'own', got 'none'"),
        ({"num_experts": 2, "top_k": 3}, r"top_k must be between 1 and num_experts=2, got 3"),
    ],
)
def test_a_mistake_is_told_in_the_words_of_the_guides(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        leaving(**knobs)
