"""Evaluation: every window counts once, whatever the batch; the model is left as it was."""

from typing import Any

import pytest
import torch
from tiny import STOP, random_tokens, steer, tiny_model, uneven_rows

from bkray.nn.lm import Prediction
from bkray.train.evaluate import evaluate

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)


def windows(n_windows: int = 7) -> tuple[Any, Any]:
    tokens = random_tokens(n_windows, 17)
    return tokens[:, :-1], tokens[:, 1:]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 50])
def test_the_batch_size_does_not_change_the_score(batch_size: int) -> None:
    """Seven windows do not divide evenly: a mean of means would differ."""
    model = tiny_model(depth="act")
    steer(model)
    inputs, targets = windows()
    whole = evaluate(model, inputs, targets, batch_size=7, autocast=OFF)
    said = evaluate(model, inputs, targets, batch_size=batch_size, autocast=OFF)
    assert said.loss_nats == pytest.approx(whole.loss_nats, rel=1e-12)
    assert said.metrics == pytest.approx(whole.metrics, rel=1e-12)


def test_the_score_is_the_mean_surprise_per_token() -> None:
    model = tiny_model()
    inputs, targets = windows()
    surprise = -model(inputs).logits_BNV.log_softmax(-1).gather(-1, targets[..., None])
    said = evaluate(model, inputs, targets, batch_size=3, autocast=OFF)
    assert said.loss_nats == pytest.approx(surprise.mean().item(), rel=1e-12)
    late = surprise[:, surprise.shape[1] // 2 :].mean().item()
    assert said.metrics == {"context/late_loss_nats": pytest.approx(late, rel=1e-12)}


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_given_back(training: bool) -> None:
    model = tiny_model(dropout=0.5).train(training)
    state = torch.get_rng_state()
    scores = {evaluate(model, *windows(), batch_size=4, autocast=OFF).loss_nats for _ in range(3)}
    assert len(scores) == 1
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state), "resuming exactly needs untouched numbers"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_layers_of_every_token_are_told() -> None:
    model = tiny_model(depth="act")
    steer(model)
    tokens = uneven_rows(17)
    said = evaluate(model, tokens[:, :-1], tokens[:, 1:], batch_size=2, autocast=OFF).metrics
    layers = model(tokens[:, :-1]).layers_BN
    assert said["act/avg_layers_executed"] == pytest.approx(layers.double().mean().item())
    shares = [said[f"act/share_at_layer_{layer}"] for layer in (1, 2, 3)]
    assert shares[0] == pytest.approx((layers == 1).double().mean().item())
    assert sum(shares) == pytest.approx(1.0)


def test_layers_that_nobody_reached_are_missing_or_zero() -> None:
    model = tiny_model(depth="act")
    steer(model)
    tokens = torch.full((2, 9), STOP)
    said = evaluate(model, tokens[:, :-1], tokens[:, 1:], batch_size=2, autocast=OFF).metrics
    assert said["act/share_at_layer_1"] == 1.0
    assert said.get("act/share_at_layer_3", 0.0) == 0.0


def test_a_nan_is_told() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    said = evaluate(model, *windows(), batch_size=4, autocast=OFF)
    assert said.loss_nats != said.loss_nats


def test_a_model_that_says_no_layers_is_scored_all_the_same() -> None:
    plain = tiny_model()

    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = plain

        def forward(self, tokens: torch.Tensor) -> Prediction:
            return Prediction(self.plain(tokens).logits_BNV)

    said = evaluate(Bare(), *windows(), batch_size=4, autocast=OFF)
    assert said == evaluate(plain, *windows(), batch_size=4, autocast=OFF)
