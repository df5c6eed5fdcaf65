"""Which parameter learns how fast and decays or not, and the learning rate from step to step."""

import itertools
from typing import Any

import pytest
import torch
from tiny import MIXERS, tiny_model
from torch import nn

from bkray.config import OptimizerConfig
from bkray.train.optim import adamw, lr_factor, set_lr

KNOBS = OptimizerConfig(lr=0.01, weight_decay=0.3, beta1=0.8, beta2=0.7)


def groups_by_name(model: nn.Module, halt_lr_factor: float = 1.0) -> dict[str, dict[str, Any]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = adamw(model, KNOBS, halt_lr_factor)
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def the_largest(mixer: str) -> nn.Module:
    return tiny_model(mixer, depth="act", position="learned", n_experts=2)


@pytest.mark.parametrize("mixer", MIXERS)
def test_matrices_decay_and_nothing_else(mixer: str) -> None:
    model = the_largest(mixer)
    for name, group in groups_by_name(model).items():
        kept = (
            name.endswith((".bias", "_bias", "energy", "raw_eta", "log_rate", "skip"))
            or "norm" in name
            or name.startswith(("embedding.", "positions."))
        )
        assert group["weight_decay"] == (0.0 if kept else 0.3), name
    assert any("norm" in name for name, _ in model.named_parameters())


def test_energies_and_etas_are_there_and_do_not_decay() -> None:
    groups = groups_by_name(the_largest("bk"))
    for layer, name in itertools.product(range(3), ("energy", "raw_eta")):
        assert groups[f"blocks.{layer}.mixer.{name}"]["weight_decay"] == 0.0


@pytest.mark.parametrize("mixer", MIXERS)
def test_halting_units_alone_learn_at_their_own_factor(mixer: str) -> None:
    for name, group in groups_by_name(the_largest(mixer), halt_lr_factor=0.125).items():
        assert group["lr_factor"] == (0.125 if "halting" in name else 1.0), name


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_parameter_is_in_one_group_once(mixer: str) -> None:
    model = the_largest(mixer)
    grouped = [p for group in adamw(model, KNOBS).param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(id(p) for p in model.parameters())


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_model()
    model.embedding.requires_grad_(False)
    assert "embedding.weight" not in groups_by_name(model)


def test_the_knobs_reach_the_optimizer() -> None:
    for group in adamw(tiny_model(), KNOBS).param_groups:
        assert group["betas"] == (0.8, 0.7)
        assert group["lr"] == 0.01


def test_a_rate_set_reaches_every_group_times_its_factor() -> None:
    optimizer = adamw(the_largest("bk"), KNOBS, 0.5)
    set_lr(optimizer, 0.2)
    set_lr(optimizer, 0.4)  # not compounded
    assert {(g["lr_factor"], g["lr"]) for g in optimizer.param_groups} == {(1.0, 0.4), (0.5, 0.2)}


def test_one_step_moves_a_parameter_by_its_own_rate() -> None:
    """The first step of AdamW moves each weight by the rate, whatever its gradient."""
    model = the_largest("bk")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, KNOBS, 0.5)
    set_lr(optimizer, 0.001)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.001 * (0.5 if "halting" in name else 1.0)
        decay = groups_by_name(model)[name]["weight_decay"]
        expected = before[name] * (1 - rate * decay) - rate
        assert (parameter - expected).abs().max() <= 1e-9, name


def schedule(n_steps: int, **knobs: float) -> list[float]:
    optimizer = OptimizerConfig(**knobs)  # type: ignore[arg-type]
    return [lr_factor(step, n_steps, optimizer) for step in range(1, n_steps + 1)]


def test_the_rate_rises_evenly_to_1_and_falls_to_its_final_fraction() -> None:
    factors = schedule(100, warmup_steps=10, final_lr_fraction=0.1)
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert factors[9] == 1.0
    assert factors[-1] == pytest.approx(0.1)
    assert factors[9:] == sorted(factors[9:], reverse=True)
    half = factors[54]  # step 55, midway between 10 and 100
    assert half == pytest.approx(0.1 + 0.9 / 2)


def test_the_first_step_is_not_lost_on_a_rate_of_zero() -> None:
    assert all(factor > 0 for factor in schedule(20, warmup_steps=5, final_lr_fraction=0.0)[:-1])


def test_without_warm_up_the_rate_starts_near_the_top() -> None:
    factors = schedule(10, warmup_steps=0, final_lr_fraction=0.0)
    assert factors[0] > 0.97
    assert factors[-1] == pytest.approx(0.0)


def test_a_warm_up_longer_than_the_training_never_reaches_the_top() -> None:
    assert schedule(4, warmup_steps=8) == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8])


def test_a_warm_up_as_long_as_the_training_ends_at_the_top() -> None:
    assert schedule(4, warmup_steps=4)[-1] == 1.0


def test_a_final_fraction_of_1_keeps_the_rate() -> None:
    assert schedule(10, warmup_steps=2, final_lr_fraction=1.0)[2:] == pytest.approx([1.0] * 8)
