"""ACT with early exit against a plain reference: one row, one list of running tokens, one loop.

Letters: B batch, N sites, V vocabulary.
"""

from typing import Any, NamedTuple

import pytest
import torch
from tiny import MIXERS, VOCABULARY, random_tokens, steer, tiny_config, tiny_model, uneven_rows
from torch import Tensor

from bkray.errors import ConfigError
from bkray.nn.act import ActDepth, run_until_halted
from bkray.nn.act_exit import ActExitDepth
from bkray.nn.depth import alone
from bkray.nn.lm import LanguageModel
from bkray.train.evaluate import evaluate
from bkray.train.step import losses, token_loss_nats

SITES, LAYERS = 16, 4
DRIFT = 0.5
OWN = {"exit_heads": "own", "exit_rule": "entropy", "exit_threshold": 1.0}
BOTH = {"depth": "act_exit", "act_threshold": 0.9, "exit_threshold": 0.9}


def stopping(mixer: str = "linear_recurrence", **knobs: Any) -> LanguageModel:
    """Return a model in evaluation whose tokens stop for both reasons, at different layers."""
    model = tiny_model(mixer, **{**BOTH, "n_layers": LAYERS, **knobs})
    steer(model)
    act, _ = parts_of(model)
    with torch.no_grad():
        for unit in act.halting:
            unit.down.weight.div_(4)  # type: ignore[union-attr, operator]
        for name, parameter in model.blocks.named_parameters():
            if name.endswith("down.bias"):
                parameter[0] += DRIFT  # wishes to stop grow, so that heads become sure deeper down
    return model.eval()


def parts_of(model: LanguageModel) -> tuple[ActDepth, Any]:
    assert isinstance(model.depth, ActExitDepth)
    return model.depth.act, model.depth.exits


def some_tokens() -> Tensor:
    return torch.cat([uneven_rows(SITES), random_tokens(3, SITES, seed=8)])


class Plain(NamedTuple):
    logits: Tensor
    layers: Tensor
    remainder: Tensor
    sure: Tensor


def plain(model: LanguageModel, tokens_BN: Tensor) -> Plain:
    """Return what each token gives, token by token, without batches, padding or masks."""
    act, exits = parts_of(model)
    heads = [*(exits.heads or [model.read] * (LAYERS - 1)), None]
    units = [*act.halting, None]
    shape = tokens_BN.shape
    said = Plain(
        torch.zeros(*shape, VOCABULARY, dtype=torch.float64),
        torch.zeros_like(tokens_BN),
        torch.zeros(shape, dtype=torch.float64),
        torch.zeros(shape, dtype=torch.bool),
    )
    hidden = model.embed(tokens_BN)
    for row in range(len(tokens_BN)):
        running, part = list(range(shape[1])), hidden[row : row + 1]
        c, total = [0.0] * shape[1], [torch.zeros(16, dtype=torch.float64)] * shape[1]
        for layer, (block, unit, head) in enumerate(zip(model.blocks, units, heads, strict=True)):
            part, _ = block(part, torch.tensor([running]), None)
            stay = []
            for place, t in enumerate(running):
                state, left = part[0, place], 1 - c[t]
                now = total[t] + left * state
                p = 1.0 if unit is None else float(unit(state).sigmoid())
                if unit is None or c[t] + p >= act.threshold:
                    answer, sure = model.read(now), False
                else:
                    answer = head(now)  # type: ignore[misc]
                    p_V = answer.softmax(-1)
                    entropy = float(-(p_V * p_V.log()).sum())
                    by_confidence = bool(p_V.max() >= exits.threshold)
                    is_entropy = exits.rule == "entropy"
                    sure = entropy <= exits.threshold if is_entropy else by_confidence
                    if not sure:
                        c[t], total[t] = c[t] + p, total[t] + p * state
                        stay.append(place)
                        continue
                said.logits[row, t], said.layers[row, t] = answer, layer + 1
                said.remainder[row, t], said.sure[row, t] = left, sure
            part, running = part[:, stay], [running[place] for place in stay]
            if not running:
                break
    return said


@torch.no_grad()
@pytest.mark.parametrize("knobs", [{}, {"n_experts": 3, "top_k": 2, "seed": 4}, OWN], ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_it_is_what_the_plain_reference_does(mixer: str, knobs: dict[str, Any]) -> None:
    model, tokens = stopping(mixer, **knobs), some_tokens()
    said, expected = model(tokens), plain(model, tokens)
    assert torch.equal(said.layers_BN, expected.layers)
    assert torch.equal(said.sure_BN, expected.sure)
    for why in (expected.sure, ~expected.sure):
        assert expected.layers[why].unique().numel() >= 2, "tokens must stop unevenly both ways"
    assert (said.remainder_BN - expected.remainder).abs().max() <= 1e-10
    assert (said.logits_BNV - expected.logits).abs().max() <= 1e-10


@torch.no_grad()
@pytest.mark.parametrize("knobs", [{}, OWN], ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_with_nobody_sure_it_is_act(mixer: str, knobs: dict[str, Any]) -> None:
    model, tokens = stopping(mixer, **knobs), some_tokens()
    _, exits = parts_of(model)
    exits.threshold = 1.5 if exits.rule == "confidence" else -1.0
    act = tiny_model(mixer, depth="act", act_threshold=0.9, n_layers=LAYERS).eval()
    weights = {name.replace("depth.act.", "depth."): w for name, w in model.state_dict().items()}
    act.load_state_dict({name: w for name, w in weights.items() if "exits" not in name})
    said, alone = model(tokens), act(tokens)
    assert not said.sure_BN.any()
    assert alone.layers_BN.unique().numel() >= 3
    assert torch.equal(said.layers_BN, alone.layers_BN)
    assert torch.equal(said.remainder_BN, alone.remainder_BN)
    assert (said.logits_BNV - alone.logits_BNV).abs().max() <= 1e-12
    taught, plainly = model.train()(tokens), act.train()(tokens)
    assert torch.equal(taught.layers_BN, plainly.layers_BN)
    assert (taught.logits_BNV - plainly.logits_BNV).abs().max() <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize("knobs", [{}, OWN], ids=str)
def test_nobody_is_asked_about_who_has_stopped(knobs: dict[str, Any]) -> None:
    model, asked = stopping(**knobs), []
    heads = [head[1] for head in parts_of(model)[1].heads]
    for head in {*heads, model.head}:
        head.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    said = model(some_tokens())
    halted = said.layers_BN[~said.sure_BN]
    going_on = [int((said.layers_BN > depth).sum()) for depth in range(1, LAYERS)]
    sure = [int((said.layers_BN[said.sure_BN] == depth).sum()) for depth in range(1, LAYERS)]
    assert min(sure) >= 0 < max(sure)
    early = [stays + left for stays, left in zip(going_on, sure, strict=True)]
    assert asked == [*early, len(halted)]


@torch.no_grad()
@pytest.mark.parametrize(("threshold", "deepest"), [(0.5, 2), (0.9, LAYERS)])
def test_each_head_learns_from_all_tokens_as_if_nobody_ran_deeper(
    threshold: float, deepest: int
) -> None:
    model, tokens = stopping(act_threshold=threshold), some_tokens()
    said = model.train()(tokens)
    assert said.layers_BN.unique().numel() >= 2
    assert said.layers_BN.max() == deepest, "where nobody runs, heads learn all the same"
    assert len(said.exits) == LAYERS - 1
    layers = parts_of(model)[0].layers([alone(block) for block in model.blocks])
    position = torch.arange(SITES).expand_as(tokens)
    for depth, exit in enumerate(said.exits, start=1):
        act = [*layers[: depth - 1], layers[depth - 1]._replace(unit=None)]
        state = run_until_halted(act, model.embed(tokens), position).hidden_BND
        assert (exit - model.read(state)).abs().max() <= 1e-12, depth


def test_the_loss_has_the_heads_and_the_ponder_cost() -> None:
    knobs = tiny_config(**{**BOTH, "act_lambda": 0.2, "exit_weight": 0.5}).model
    model, tokens = tiny_model(**BOTH), random_tokens(2, SITES)
    said = model(tokens)
    numbers = losses(said, tokens, knobs, None)
    early = [numbers[f"exit/loss_nats_at_head_{i}"] for i in (1, 2)]
    last = token_loss_nats(said, tokens).mean()
    ponder = (said.layers_BN + said.remainder_BN).mean()
    expected = (last + 0.5 * (early[0] + early[1])) / 2 + 0.2 * ponder
    assert numbers["total"].item() == pytest.approx(expected.item(), rel=1e-12)
    assert numbers["act/ponder_cost"] == ponder


@pytest.mark.parametrize("threshold", [0.1, 0.9])
@pytest.mark.parametrize("knobs", [{}, OWN], ids=str)
def test_every_parameter_learns_that_anybody_reaches(
    knobs: dict[str, Any], threshold: float
) -> None:
    """At 0.1 all stop at layer 1: its unit alone decides, and every head still learns."""
    knobs = {**BOTH, **knobs, "act_threshold": threshold}
    model, tokens = tiny_model(**knobs), random_tokens(2, SITES)
    total = losses(model(tokens), tokens, tiny_config(**knobs).model, None)["total"]
    torch.autograd.backward(total)
    for name, parameter in model.named_parameters():
        beyond = name.startswith(("blocks.1", "blocks.2", "depth.act.halting"))
        if ".down.weight" in name or ".up." in name or (threshold == 0.1 and beyond):
            continue  # units start at zero weight; nobody came here
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_an_evaluation_tells_who_left_because_a_head_was_sure() -> None:
    model, tokens = stopping(), some_tokens()
    plain_cast = torch.autocast("cpu", torch.bfloat16, enabled=False)
    score = evaluate(model, tokens, tokens, batch_size=3, autocast=plain_cast)
    said = model(tokens)
    for depth in range(1, LAYERS + 1):
        at_depth = said.layers_BN == depth
        told = score.metrics[f"act/share_at_layer_{depth}"]
        assert told == pytest.approx(float(at_depth.double().mean()))
        share = float((at_depth & said.sure_BN).double().mean())
        assert score.metrics[f"exit/share_at_layer_{depth}"] == pytest.approx(share)
    assert 0 < score.metrics["exit/share_sure"] < 1
    act = evaluate(
        tiny_model(depth="act"), tokens, tokens, batch_size=3, autocast=plain_cast
    ).metrics
    assert not any(name.startswith("exit/") for name in act)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n_layers": 1}, r"depth=act_exit does nothing with model\.n_layers=1"),
    ({"multiscale": True, "n_layers": 5}, r"act_exit does not go with model\.multiscale=true"),
    ({"sparsity": "learned"}, r"sparsity=learned needs model\.depth=dense, got depth=act_exit"),
    ({"exit_threshold": 0.0}, r"above 0 and at most 1 .*confidence, got 0\.0"),
    ({"exit_heads": "own", "exit_weight": 0}, r"own needs a model\.exit_weight above 0"),
    ({"act_threshold": 0}, r"act_threshold: .*0 < act_threshold.*got 0"),
]


@pytest.mark.parametrize(("knobs", "words"), REFUSED, ids=str)
def test_what_makes_no_sense_is_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(depth="act_exit", **knobs)
