"""Updates that are withheld on the device change nothing; the others are as without a guard."""

import copy
import math
from typing import Any

import pytest
import torch
from tiny import random_tokens, tiny_config, tiny_model
from torch import nn

from bkray.nn.lm import LanguageModel
from bkray.train.guard import Guard
from bkray.train.optim import adamw, set_lr
from bkray.train.step import Step, TokenTally, optimizer_step
from bkray.train.watch import Blocks

CPU = torch.device("cpu")
KNOBS: dict[str, Any] = {"n_experts": 2, "balance_weight": 0.1}


def withheld(
    losses: list[float], norms: list[float], *, last: float | None, left: int
) -> list[bool]:
    guard = Guard(CPU, last, left)
    return [
        bool(guard.withholds(torch.tensor(loss), torch.tensor(norm)))
        for loss, norm in zip(losses, norms, strict=True)
    ]


def test_what_is_not_finite_is_withheld_whatever_the_policy() -> None:
    losses, norms = [2.0, math.nan, 2.0, math.inf, 2.0], [1.0, 1.0, math.inf, 1.0, math.nan]
    assert withheld(losses, norms, last=None, left=0) == [False, True, True, True, True]


def test_a_loss_more_than_twice_the_one_before_is_withheld_so_often() -> None:
    losses = [2.0, 4.0, 8.5, 17.5, 36.0]
    assert withheld(losses, [1.0] * 5, last=None, left=2) == [False, False, True, True, False]
    assert withheld(losses, [1.0] * 5, last=0.9, left=9)[0], "the step before counts"
    assert not any(withheld(losses, [1.0] * 5, last=None, left=0))


def stepped(model: LanguageModel, optimizer: torch.optim.Optimizer, guard: Guard) -> Step:
    config, tokens = tiny_config(**KNOBS), random_tokens(2, 17)
    return optimizer_step(
        model,
        optimizer,
        [(tokens[:, :-1], tokens[:, 1:])],
        TokenTally(config.model, torch.full((3, 2), 0.5)),
        clip_norm=0.5,
        autocast=torch.autocast("cpu", enabled=False),
        blocks=Blocks(model),
        guard=guard,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_withheld_update_leaves_parameters_moments_and_load_alone(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype, **KNOBS)
    optimizer = adamw(model, tiny_config().optimizer)
    set_lr(optimizer, 1e-2)
    stepped(model, optimizer, Guard(CPU, None, 0))
    weights = copy.deepcopy(model.state_dict())
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    said = stepped(model, optimizer, Guard(CPU, 1e-3, 1))
    assert bool(said.numbers["masked"])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    after = optimizer.state_dict()["state"]
    for i, moment in moments.items():
        assert all(torch.equal(value, after[i][name]) for name, value in moment.items())
    assert said.load_LE is not None
    assert torch.equal(said.load_LE, torch.full((3, 2), 0.5))
    said = stepped(model, optimizer, Guard(CPU, None, 0))
    assert said.load_LE is not None
    assert not torch.equal(said.load_LE, torch.full((3, 2), 0.5))
    assert not torch.equal(model.head.weight, weights["head.weight"])


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = tiny_model(**KNOBS)
    optimizer = adamw(model, tiny_config().optimizer)
    model.head.weight.register_hook(lambda gradient: gradient * math.nan)
    before = copy.deepcopy(model.state_dict())
    said = stepped(model, optimizer, Guard(CPU, None, 0))
    assert math.isfinite(said.numbers["loss_nats"])
    assert math.isnan(said.numbers["grad_norm"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_blocks_share_the_gradient_norm_and_the_clip_is_that_of_torch() -> None:
    model, other = tiny_model(**KNOBS), tiny_model(**KNOBS)
    blocks = Blocks(model)
    assert blocks.names == ("embedding", "blocks.0", "blocks.1", "blocks.2", "norm", "head")
    for one in (model, other):
        generator = torch.Generator().manual_seed(1)
        for parameter in one.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    norm, norms_K = blocks.gradient_norms()
    assert float(norms_K.square().sum().sqrt()) == pytest.approx(float(norm), rel=1e-12)
    head = other.head.weight.grad
    assert head is not None
    assert float(norms_K[-1]) == pytest.approx(float(head.norm()), rel=1e-12)
    assert float(norm) == pytest.approx(
        float(nn.utils.clip_grad_norm_(other.parameters(), 0.5)), rel=1e-12
    )


@pytest.mark.parametrize("knobs", [{}, {"depth": "act"}, KNOBS], ids=["dense", "act", "experts"])
def test_activations_are_the_largest_of_each_block(knobs: dict[str, Any]) -> None:
    model, tokens = tiny_model(**knobs), random_tokens(2, 16)
    with Blocks(model).activations() as seen:
        logits = model(tokens).logits_BNV
    assert float(seen["head"]) == float(logits.detach().abs().max())
    assert float(seen["embedding"]) == float(model.embedding(tokens).detach().abs().max())
    assert {"blocks.0", "norm"} < seen.keys()
    with torch.no_grad():
        model.blocks[1].mixer_norm.weight.fill_(math.nan)
    with Blocks(model).activations() as seen:
        model(tokens)
    assert math.isfinite(seen["blocks.0"])
    assert math.isnan(seen["blocks.1"])
    assert not model.head._forward_hooks, "nobody looks on afterwards"
