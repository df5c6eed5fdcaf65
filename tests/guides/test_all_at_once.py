"""Learned length, ACT and early exit in one model: the wrapper around ``depth=act_exit``."""

from typing import Any

import pytest
import torch
from guided import D, N, V, tokens
from lengthy import choose_unevenly
from torch import nn

from bkray.guides import AdaptiveSequenceLengthWrapper, LearnedSequenceLengthTrainer
from bkray.nn.act_exit import ActExitDepth
from bkray.nn.build import language_model
from bkray.overrides import build

MODEL = {
    "model.depth": "act_exit",
    "model.d_model": D,
    "model.n_layers": 4,
    "model.n_seq": N,
    "model.position": "learned",
    "model.act_threshold": 0.9,
    "model.exit_threshold": 0.05,
}


def all_three(heads: str = "shared") -> AdaptiveSequenceLengthWrapper:
    """Return a wrapped model in float64 and evaluation mode, uneven in all three respects."""
    torch.manual_seed(0)
    base: Any = language_model(build({**MODEL, "model.exit_heads": heads}).model, V)
    base.act_lambda, base.exit_weight = 0.01, 0.5
    assert isinstance(base.depth, ActExitDepth)
    for unit in base.depth.act.halting:
        nn.init.normal_(unit.down.weight, std=8.0)
    model = AdaptiveSequenceLengthWrapper(base, N, 4, beyond="repeat")
    choose_unevenly(model)
    return model.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("heads", ["shared", "own"])
def test_inside_the_cut_the_numbers_are_those_of_the_base_model(heads: str) -> None:
    model, x = all_three(heads), tokens(48)
    plain = model.language_model(x)
    assert 0.05 < plain.sure_BN.double().mean() < 0.95, "tokens must stop for both reasons"
    logits, info = model(x, use_adaptive_length=True)
    lengths = info["predicted_lengths"].tolist()
    assert len(set(lengths)) >= 3, "rows must be cut unevenly for this to mean much"
    layers, remainder = info["prediction"].layers_BN, info["prediction"].remainder_BN
    assert layers.unique().numel() >= 4, "and tokens stop unevenly"
    for row, n in enumerate(lengths):
        assert (logits[row, :n] - plain.logits_BNV[row, :n]).abs().max() <= 1e-10
        assert torch.equal(layers[row, :n], plain.layers_BN[row, :n])
        assert (layers[row, n:] == 0).all()
        sure = info["prediction"].sure_BN[row]
        assert torch.equal(sure[:n], plain.sure_BN[row, :n])
        assert not sure[n:].any()
    assert info["ponder_cost"] == (layers + remainder).mean()


@pytest.mark.parametrize(("weight", "values"), [("act_lambda", (0, 2)), ("exit_weight", (1, 3))])
def test_the_base_models_weights_act_in_the_loss(weight: str, values: tuple[float, float]) -> None:
    x = tokens(8)
    totals: dict[bool, list[float]] = {True: [], False: []}
    for adaptive in totals:
        for value in values:
            model: Any = all_three()
            setattr(model.base_model, weight, value)
            trainer = LearnedSequenceLengthTrainer(
                model, torch.optim.AdamW(model.parameters(), lr=1e-2)
            )
            said = trainer.train_step(x, x.roll(-1, 1), use_adaptive_length=adaptive)
            totals[adaptive].append(said["total_loss"])
    with_length, plain = (said[1] - said[0] for said in totals.values())
    assert with_length == pytest.approx(plain, abs=1e-9)
    assert abs(plain) > 1e-4


def test_a_step_of_training_moves_every_part() -> None:
    model = all_three("own")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = LearnedSequenceLengthTrainer(model, torch.optim.SGD(model.parameters(), lr=1.0))
    x = tokens(16)
    trainer.train_step(x, x.roll(-1, 1))
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert not {name for name in still if ".positions." not in name}, still
    score = trainer.evaluate([(x, x.roll(-1, 1))])
    assert score["avg_predicted_length"] < N
