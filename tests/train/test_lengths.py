"""What learned length is trained on. Letters: B batch, N sites, K bins."""

import math
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, random_tokens, tiny_config
from torch import Tensor

from bkray.nn.beyond import Answer
from bkray.nn.build import built_in
from bkray.nn.length import LearnedLength
from bkray.nn.lm import Lengths, Prediction
from bkray.train.lengths import (
    TEMPERATURE,
    bin_shares,
    costs,
    length_losses,
    predictor_loss,
)
from bkray.train.step import losses, token_loss_nats

SITES = 16


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return six rows each of two tokens in turn, of the same with every third token replaced by
    any other, and of any tokens: behind a cut they lose much, something, and nothing."""
    draw = torch.Generator().manual_seed(seed)
    pair = torch.randint(VOCABULARY, (12, 2), generator=draw).repeat(1, SITES)[:, : SITES + 1]
    anything = random_tokens(12, SITES + 1, seed=seed)
    noisy = torch.where(torch.arange(SITES + 1) % 3 == 0, anything[6:], pair[6:])
    tokens = torch.cat([pair[:6], noisy, anything[:6]])
    return tokens[:, :-1], tokens[:, 1:]


def build(**knobs: Any) -> tuple[LearnedLength, Any]:
    torch.manual_seed(0)
    config = tiny_config(length="learned", length_bins=4, **knobs).model
    model = built_in(config, VOCABULARY)
    assert isinstance(model, LearnedLength)
    return model, config


def trained(steps: int = 300, **knobs: Any) -> LearnedLength:
    model, config = build(**knobs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        inputs, targets = batch(seed=step)
        optimizer.zero_grad()
        torch.autograd.backward(losses(model(inputs), targets, config, None)["total"])
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("gradient", ["exact", "gumbel"])
@pytest.mark.parametrize("beyond", ["repeat", "shallow", "copy"])
def test_a_gradient_reaches_every_parameter(gradient: str, beyond: str) -> None:
    model, config = build(length_gradient=gradient, length_beyond=beyond)
    inputs, targets = batch()
    torch.autograd.backward(losses(model(inputs), targets, config, None)["total"])
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_total_is_that_of_its_formula_bin_by_bin() -> None:
    model, config = build(length_penalty=0.3)
    model.double()
    inputs, targets = batch()
    said: Prediction = model(inputs)
    assert said.lengths is not None
    loss_BN = token_loss_nats(said, targets)
    total = float(losses(said, targets, config, None)["total"].detach())
    share_BK = said.lengths.logit_BK.softmax(1).tolist()
    cost_BK = costs(said, loss_BN, targets, 0.3).tolist()
    plain = float(loss_BN.mean().detach())
    for q, cost in zip(share_BK, cost_BK, strict=True):
        least, most = min(cost), max(cost)
        for k in range(4):
            relative = (cost[k] - least) / (most - least)
            taught = q[k] * (cost[k] + relative + TEMPERATURE * math.log(q[k]))
            plain += taught / len(inputs)
    assert abs(total - plain) < 1e-12


def test_the_predictor_learns_the_gradient_of_the_expected_cost_and_the_answers_theirs() -> None:
    logit = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64, requires_grad=True)
    cost = torch.tensor([[2.0, 1.0, 1.8]], dtype=torch.float64, requires_grad=True)
    share = logit.softmax(1)
    torch.autograd.backward(predictor_loss(logit, share, cost).sum())
    assert cost.grad is None, "costs are taught elsewhere"
    relative = torch.tensor([1.0, 0.0, 0.8], dtype=torch.float64)
    q = share[0].detach()
    worth = relative + TEMPERATURE * q.log()
    assert logit.grad is not None
    assert (logit.grad[0] - q * (worth - (q * worth).sum())).abs().max() < 1e-12


def test_a_higher_penalty_gives_shorter_rows_and_not_all_the_shortest() -> None:
    lengths = []
    for penalty in (0.02, 0.6, 4.0):
        model = trained(length_penalty=penalty, length_beyond="repeat")
        with torch.no_grad():
            said: Prediction = model(batch(seed=10_000)[0])
        assert said.lengths is not None
        lengths.append(float(said.lengths.computed_B.double().mean()))
    assert lengths[0] > lengths[1] > lengths[2], lengths
    assert lengths[1] > 4, lengths


def test_the_predictor_knows_which_rows_are_worth_their_length() -> None:
    model = trained(length_penalty=0.6, length_beyond="repeat")
    inputs, targets = batch(seed=10_000)
    with torch.no_grad():
        chosen: Prediction = model(inputs)
        full: Prediction = model.train()(inputs)
        cost_BK = costs(full, token_loss_nats(full, targets), targets, 0.6)
    assert chosen.lengths is not None
    at_B1 = chosen.lengths.logit_BK.argmax(1, keepdim=True)
    above_BK = cost_BK - cost_BK.min(1, keepdim=True).values
    regret = float(above_BK.gather(1, at_B1).mean())
    assert len(at_B1.unique()) > 1
    assert regret < 0.1 * float(above_BK.mean(0).min()), "a tenth of the best single length's"


@pytest.mark.parametrize("train_cut", [0.0, 0.5])
def test_parts_of_a_batch_add_up_to_the_whole(train_cut: float) -> None:
    model, config = build(length_train_cut=train_cut, length_penalty=2.0)
    inputs, targets = batch()
    with torch.no_grad():
        model.predictor.down.bias[0] += 10.0  # short rows, so those drawn are really cut
        said: Prediction = model.double()(inputs)
    assert said.lengths is not None and said.lengths.beyond is not None
    assert len(said.lengths.computed_B.unique()) == (2 if train_cut else 1)

    def taught(rows: slice) -> float:
        logit, bins, computed, beyond = said.lengths  # type: ignore[misc]
        answer = Answer(*(x[rows] for x in beyond))  # type: ignore[union-attr]
        lengths = Lengths(logit[rows], bins, computed[rows], answer)
        part = Prediction(said.logits_BNV[rows], lengths=lengths)
        loss_BN = token_loss_nats(part, targets[rows])
        return float(length_losses(part, loss_BN, targets[rows], config)["total"])

    parts = [taught(slice(start, start + 3)) for start in range(0, len(inputs), 3)]
    assert abs(sum(parts) / len(parts) - taught(slice(None))) < 1e-12


def test_a_drawn_bin_counts_as_one_whole() -> None:
    torch.manual_seed(0)
    share_BK = bin_shares(torch.zeros(50, 4), "gumbel")
    assert torch.equal(share_BK.sort(1).values[:, -1].round(), torch.ones(50))
    assert len(share_BK.argmax(1).unique()) == 4
