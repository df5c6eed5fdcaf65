"""Early exit against a plain reference: one row, one list of running tokens, one Python loop.

Letters: B batch, N sites, V vocabulary.
"""

from typing import Any

import pytest
import torch
from tiny import MIXERS, VOCABULARY, random_tokens, steer, tiny_config, tiny_model, uneven_rows
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.nn.build import built_in
from bkray.nn.exits import ExitDepth
from bkray.nn.length import LearnedLength
from bkray.nn.lm import LanguageModel, Prediction
from bkray.train.step import losses, token_loss_nats

SITES, LAYERS = 16, 4
OWN = {"exit_heads": "own", "exit_rule": "entropy"}


def leaving(mixer: str = "linear_recurrence", **knobs: Any) -> LanguageModel:
    """Return a model in evaluation that tokens leave at very different layers."""
    model = tiny_model(mixer, depth="exit", **{"n_layers": LAYERS, **knobs})
    steer(model)
    return model.eval()


def depth_of(model: LanguageModel) -> ExitDepth:
    assert isinstance(model.depth, ExitDepth)
    return model.depth


def plain_exit(model: LanguageModel, tokens_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and layers, token by token, without batches, padding or masks."""
    depth = depth_of(model)
    heads = [*(depth.heads or [model.read] * (len(model.blocks) - 1)), model.read]
    logits_BNV = torch.zeros(*tokens_BN.shape, VOCABULARY, dtype=torch.float64)
    layers_BN = torch.zeros_like(tokens_BN)
    hidden = model.embed(tokens_BN)
    for row in range(len(tokens_BN)):
        running = list(range(tokens_BN.shape[1]))
        part = hidden[row : row + 1]
        for layer, (block, head) in enumerate(zip(model.blocks, heads, strict=True), start=1):
            part, _ = block(part, torch.tensor([running]), None)
            logits = head(part)[0]
            p = logits.softmax(-1)
            if layer == len(heads):
                leave = [True] * len(running)
            elif depth.rule == "confidence":
                leave = [bool(x.max() >= depth.threshold) for x in p]
            else:
                leave = [bool(-(x * x.log()).sum() <= depth.threshold) for x in p]
            for place, t in enumerate(running):
                if leave[place]:
                    logits_BNV[row, t], layers_BN[row, t] = logits[place], layer
            part = part[:, [not gone for gone in leave]]
            running = [t for t, gone in zip(running, leave, strict=True) if not gone]
            if not running:
                break
    return logits_BNV, layers_BN


@torch.no_grad()
@pytest.mark.parametrize("knobs", [{}, {"n_experts": 3, "top_k": 2}, OWN], ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_early_exit_is_what_the_plain_reference_does(mixer: str, knobs: dict[str, Any]) -> None:
    model = leaving(mixer, **knobs)
    tokens = torch.cat([uneven_rows(SITES), random_tokens(3, SITES, seed=8)])
    said = model(tokens)
    logits, layers = plain_exit(model, tokens)
    assert torch.equal(said.layers_BN, layers)
    assert layers.unique().numel() >= 3, "tokens must leave unevenly for this to mean much"
    assert (said.logits_BNV - logits).abs().max() <= 1e-10


@torch.no_grad()
@pytest.mark.parametrize("knobs", [{}, OWN], ids=str)
def test_no_layer_and_no_head_is_asked_about_who_has_left(knobs: dict[str, Any]) -> None:
    model, asked = leaving(**knobs), []
    heads = [head[1] for head in depth_of(model).heads]
    for head in {*heads, model.head}:
        head.register_forward_pre_hook(lambda _, args: asked.append(args[0].numel() // 16))
    layers = model(uneven_rows(SITES)).layers_BN
    running = [int((layers > depth).sum()) for depth in range(LAYERS)]
    assert len(set(running)) >= 3
    assert running[-1] > 0
    assert asked == running


@torch.no_grad()
def test_padding_is_seen_by_no_expert() -> None:
    tokens = torch.cat([uneven_rows(SITES), random_tokens(3, SITES, seed=8)])
    said = leaving(n_experts=3, top_k=2)(tokens)
    asked = [int(routed.count_E.sum()) for routed in said.routing]
    assert asked == [2 * int((said.layers_BN > depth).sum()) for depth in range(LAYERS)]
    said = leaving(n_experts=3, top_k=2, multiscale=True)(tokens)
    left = said.layers_BN == 1
    assert left.any(1).sum() >= 3
    asked = [int(routed.count_E.sum()) for routed in said.routing]
    n_pairs = int(((~left).sum(1) // 2).sum())
    assert asked[:3] == [2 * tokens.numel(), 2 * n_pairs, 2 * n_pairs]


@torch.no_grad()
def test_layers_that_nobody_reaches_are_not_run() -> None:
    model, calls = leaving(n_experts=3), []
    depth_of(model).threshold = 1e-9
    model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    said = model(uneven_rows(SITES))
    assert (said.layers_BN == 1).all()
    assert not calls
    assert [int(routed.count_E.sum()) for routed in said.routing] == [4 * SITES, 0, 0, 0]


@torch.no_grad()
@pytest.mark.parametrize("knobs", [{}, OWN], ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_with_nobody_leaving_it_is_the_dense_model(mixer: str, knobs: dict[str, Any]) -> None:
    model, dense = tiny_model(mixer, depth="exit", **knobs).eval(), tiny_model(mixer)
    depth_of(model).threshold = 1.0 if depth_of(model).rule == "confidence" else 0.0
    dense.load_state_dict(model.state_dict(), strict=False)
    tokens = random_tokens(3, SITES)
    said = model(tokens)
    assert (said.layers_BN == 3).all()
    assert (said.logits_BNV - dense(tokens).logits_BNV).abs().max() <= 1e-12
    assert (said.logits_BNV - model.train()(tokens).logits_BNV).abs().max() <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize(
    ("rule", "thresholds"), [("confidence", (0.11, 0.5, 0.9, 1.0)), ("entropy", (2.3, 1, 0.3, 0))]
)
def test_the_threshold_can_be_changed_on_a_trained_model(rule: Any, thresholds: Any) -> None:
    model, layers = leaving(), []
    depth_of(model).rule = rule
    for depth_of(model).threshold in thresholds:
        layers.append(float(model(uneven_rows(SITES)).layers_BN.double().mean()))
    assert layers == sorted(layers)
    assert layers[0] < layers[-1]


@torch.no_grad()
def test_who_is_sure_is_judged_by_the_largest_probability_or_the_entropy() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]).log()
    for at_most, sure in ((0.4, [True, True]), (0.6, [False, True]), (0.95, [False, False])):
        assert ExitDepth("confidence", at_most).sure(logits).tolist() == sure
    for at_least, sure in ((1.05, [True, True]), (1.0, [False, True]), (0.3, [False, False])):
        assert ExitDepth("entropy", at_least).sure(logits).tolist() == sure
    for rule in ("confidence", "entropy"):
        assert not ExitDepth(rule, 0.5).sure(torch.full((1, 3), torch.nan)).any()  # type: ignore[arg-type]


def test_in_training_every_head_speaks_of_every_token() -> None:
    tokens = random_tokens(2, SITES)
    for knobs in ({}, OWN):
        model = tiny_model(depth="exit", n_layers=LAYERS, **knobs)
        hidden, position = model.embed(tokens), torch.arange(SITES).expand_as(tokens)
        said = model(tokens)
        assert len(said.exits) == LAYERS - 1
        assert (said.layers_BN == LAYERS).all()
        heads = depth_of(model).heads or [model.read] * LAYERS
        for block, head, exit in zip(model.blocks, heads, said.exits, strict=False):
            hidden, _ = block(hidden, position, None)
            assert (head(hidden) - exit).abs().max() <= 1e-12


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_loss_is_the_mean_over_the_heads_and_the_reported_one_the_last_heads(
    weight: float,
) -> None:
    knobs = tiny_config(depth="exit", exit_weight=weight).model
    model, tokens = tiny_model(depth="exit"), random_tokens(2, SITES)
    prediction = model(tokens)
    numbers = losses(prediction, tokens, knobs, None)
    last = token_loss_nats(prediction, tokens).mean()
    early = [token_loss_nats(Prediction(exit), tokens).mean() for exit in prediction.exits]
    assert len(early) == 2
    assert numbers["loss_nats"] == last
    assert [numbers[f"exit/loss_nats_at_head_{i}"] for i in (1, 2)] == early
    expected = (last + weight * early[0] + weight * early[1]) / (1 + 2 * weight)
    assert numbers["total"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_early_heads_learn_by_their_own_loss_alone() -> None:
    model, tokens = tiny_model(depth="exit", **OWN), random_tokens(2, SITES)
    for weight in (0.0, 1.0):
        model.zero_grad()
        knobs = tiny_config(depth="exit", exit_weight=weight).model
        torch.autograd.backward(losses(model(tokens), tokens, knobs, None)["total"])
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()) is (weight > 0 or ".heads." not in name), name


def test_behind_a_cut_every_head_gives_the_cheap_answer_and_only_the_last_learns_it() -> None:
    knobs = {"length": "learned", "length_list": "4,16", "length_train_cut": 0.9}
    torch.manual_seed(1)
    model = built_in(tiny_config(depth="exit", **knobs).model, VOCABULARY).double()
    assert isinstance(model, LearnedLength)
    nn.init.constant_(model.predictor.down.bias, 0.0)
    with torch.no_grad():
        model.predictor.down.bias[0] = 50.0
    said = model(random_tokens(6, SITES))
    assert said.lengths is not None
    cut = said.lengths.computed_B == 4
    assert cut.any()
    assert not cut.all()
    for exit in said.exits:
        assert (exit - said.logits_BNV)[cut, 4:].abs().max() == 0
        assert (exit - said.logits_BNV)[:, :4].abs().max() > 0
    (from_behind,) = torch.autograd.grad(
        said.exits[0][cut, 4:].square().sum(), [model.model.embedding.weight], allow_unused=True
    )
    assert from_behind is None or not from_behind.any()


REFUSED = [
    ({"exit_weight": 1.0}, r"exit_weight=1\.0 does nothing .*dense: set model\.depth=exit"),
    ({"depth": "act", "exit_rule": "entropy"}, r"exit_rule=.* does nothing with model\.depth=act"),
    ({"depth": "exit", "act_lambda": 0.1}, r"act_lambda=.* does nothing with model\.depth=exit"),
    ({"depth": "exit", "n_layers": 1}, r"depth=exit does nothing with model\.n_layers=1"),
    ({"depth": "exit", "exit_threshold": 0.0}, r"above 0 and at most 1 .*confidence, got 0\.0"),
    ({"depth": "exit", "exit_threshold": 1.5}, r"above 0 and at most 1 .*confidence, got 1\.5"),
    ({"depth": "exit", **OWN, "exit_threshold": -1.0}, r"exit_threshold: .*0.* <= .*got -1"),
    ({"depth": "exit", "exit_weight": -1.0}, r"exit_weight: .*0.* <= exit_weight.*got -1"),
    ({"depth": "exit", **OWN, "exit_weight": 0}, r"own needs a model\.exit_weight above 0"),
    ({"depth": "exit", "exit_heads": "many"}, r"exit_heads: .*'shared' or 'own', got 'many'"),
]


@pytest.mark.parametrize(("knobs", "words"), REFUSED, ids=str)
def test_what_makes_no_sense_is_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(**knobs)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    assert tiny_config(depth="exit", exit_threshold=1).model.exit_threshold == 1
    assert tiny_config(depth="exit", **OWN, exit_threshold=0).model.exit_threshold == 0
    assert tiny_config(depth="exit", exit_weight=0, n_layers=2).model.exit_weight == 0
