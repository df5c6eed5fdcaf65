"""The guides' training and scoring with learned length. Letters: B batch, N sites."""

import copy
import math
from typing import Any

import pytest
import torch
from guided import D, N, V, small, tokens
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.guides import (
    AdaptiveSequenceLengthWrapper,
    EarlyExitLanguageModel,
    LanguageModel,
    LearnedSequenceLengthTrainer,
)

BASES: dict[str, Any] = {
    "standard": lambda: LanguageModel(V, D, 2, N, dropout_p=0.0),
    "act": lambda: small(dropout_p=0.0),
    "exit": lambda: EarlyExitLanguageModel(V, D, 2, N, dropout_p=0.0),
}


def wrapped(name: str = "standard", **knobs: Any) -> AdaptiveSequenceLengthWrapper:
    torch.manual_seed(0)
    given = {"max_seq_len": N, "num_length_bins": 4, **knobs}
    return AdaptiveSequenceLengthWrapper(BASES[name](), **given)


def trainer_of(
    model: AdaptiveSequenceLengthWrapper, lr: float = 1e-2
) -> LearnedSequenceLengthTrainer:
    return LearnedSequenceLengthTrainer(model, torch.optim.AdamW(model.parameters(), lr=lr))


def patterns(seed: int, n_rows: int = 8) -> tuple[Tensor, Tensor]:
    """Return rows of two tokens in turn, and what comes next."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(V, (n_rows, 2), generator=draw).repeat(1, N)[:, : N + 1]
    return rows[:, :-1], rows[:, 1:]


@pytest.mark.parametrize("beyond", ["repeat", "shallow", "copy"])
@pytest.mark.parametrize("name", BASES)
def test_a_step_gives_every_parameter_of_the_predictor_a_gradient(name: str, beyond: str) -> None:
    model = wrapped(name, beyond=beyond)
    x = torch.cat([patterns(0)[0], tokens(8)])
    said = trainer_of(model).train_step(x, x.roll(-1, 1))
    assert list(said) == [
        "total_loss",
        "ce_loss",
        "length_cost",
        "avg_predicted_length",
        "speedup_estimate",
    ]
    learning = [*model.length_predictor.named_parameters(), *model.beyond.named_parameters()]
    for parameter_name, parameter in learning:
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


def test_a_penalty_assigned_later_acts_at_once() -> None:
    model = wrapped()
    x, y = patterns(0)
    trainer = trainer_of(model, lr=0.0)
    before = trainer.train_step(x, y)
    model.length_penalty = 0.51
    after = trainer.train_step(x, y.flatten())
    expected_length = before["length_cost"] / 0.01 * N
    assert 6 < expected_length < N
    assert after["length_cost"] == pytest.approx(0.51 * expected_length / N, rel=1e-5)
    assert after["ce_loss"] == before["ce_loss"]
    # The entropy of the lengths weighs as much as their costs differ, and so it changes too.
    assert after["total_loss"] != pytest.approx(before["total_loss"], rel=1e-4)
    model.length_penalty = -1.0
    with pytest.raises(ConfigError, match=r"^length_penalty: .*got -1"):
        trainer.train_step(x, y)


def test_the_penalty_decides_how_long_the_rows_are() -> None:
    lengths = []
    for penalty in (0.0, 30.0):
        model = wrapped(length_penalty=penalty, beyond="repeat")
        trainer = trainer_of(model)
        for step in range(40):
            said = trainer.train_step(*patterns(step))
        lengths.append(said["avg_predicted_length"])
        assert said["speedup_estimate"] == pytest.approx(N / said["avg_predicted_length"])
    assert lengths[1] == 6
    assert lengths[0] > 6


@pytest.mark.parametrize(
    ("name", "weight", "values"),
    [("act", "act_lambda", (0.0, 2.0)), ("exit", "exit_weight", (1, 3))],
)
def test_the_base_model_is_trained_on_its_own_loss_too(
    name: str, weight: str, values: tuple[float, float]
) -> None:
    """Exactly so: what the length adds is the same whatever the base model weighs."""
    x, y = patterns(0)
    totals: dict[bool, list[float]] = {True: [], False: []}
    for adaptive in totals:
        for value in values:
            model = wrapped(name)
            setattr(model.base_model, weight, value)
            totals[adaptive].append(trainer_of(model).train_step(x, y, adaptive)["total_loss"])
    with_length, plain = (said[1] - said[0] for said in totals.values())
    assert with_length == pytest.approx(plain, abs=1e-5)
    assert abs(plain) > 1e-3


def test_without_adaptive_length_the_plain_model_is_trained() -> None:
    model, (x, y) = wrapped(), patterns(0)
    plain: Any = copy.deepcopy(model.base_model)
    trainer = LearnedSequenceLengthTrainer(model, torch.optim.SGD(model.parameters(), lr=1.0))
    said = trainer.train_step(x, y, use_adaptive_length=False)
    assert list(said) == ["total_loss", "ce_loss", "length_cost"]
    assert (said["total_loss"], said["length_cost"]) == (said["ce_loss"], 0)
    assert all(p.grad is None for p in model.length_predictor.parameters())
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0)
    torch.autograd.backward(nn.functional.cross_entropy(plain(x).flatten(0, 1), y.flatten()))
    nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    optimizer.step()
    for mine, theirs in zip(model.base_model.parameters(), plain.parameters(), strict=True):
        assert (mine - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize("name", BASES)
def test_perplexity_is_that_of_all_tokens_at_every_setting(name: str) -> None:
    model = wrapped(name, length_penalty=3.0)
    trainer = trainer_of(model)
    for step in range(5):
        trainer.train_step(*patterns(step))
    batches = [patterns(10), patterns(11, n_rows=3)]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    for adaptive in (True, False):
        model.train()
        said = trainer.evaluate(batches, use_adaptive_length=adaptive)
        assert model.training
        with torch.no_grad():
            logits = model.eval().predict(x, adaptive).logits_BNV
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        assert said["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)
        assert said["loss"] >= said["ce_loss"] == pytest.approx(loss.item(), rel=1e-5)
        if adaptive:
            assert said["total_predictions"] == 11, "of the evaluation alone"
            assert said["avg_speedup"] == pytest.approx(N / said["avg_predicted_length"])
            assert said["length_cost"] == pytest.approx(3.0 * said["avg_predicted_length"] / N)
            assert said["speedup_measured"] > 0
        else:
            assert "avg_predicted_length" not in said


def test_longer_rows_are_scored_whole_and_have_nothing_to_be_timed_against() -> None:
    model = wrapped()
    x = tokens(4, N + 5)
    said = trainer_of(model).evaluate([(x, x)])
    assert said["speedup_measured"] is None
    assert said["avg_speedup"] == pytest.approx((N + 5) / said["avg_predicted_length"])
    assert trainer_of(model).train_step(x, x)["ce_loss"] > 0


def test_an_optimizer_made_before_the_bins_is_refused() -> None:
    model = wrapped()
    trainer = trainer_of(model)
    model.length_predictor.length_bins = torch.tensor([4, 8, 12, 16, 24])
    model.length_predictor.num_length_bins = 5
    with pytest.raises(ConfigError, match="assign length_bins before making the optimizer"):
        trainer.train_step(*patterns(0))
    assert "ce_loss" in trainer.train_step(*patterns(0), use_adaptive_length=False)
    assert trainer_of(model).train_step(*patterns(0))["avg_predicted_length"] in range(4, N + 1)


def test_averages_are_of_the_steps_since_the_last_reset() -> None:
    trainer = trainer_of(wrapped())
    assert all(math.isnan(value) for value in trainer.get_average_metrics().values())
    said = [trainer.train_step(*patterns(step)) for step in range(3)]
    assert trainer.num_batches == 3
    averages = trainer.get_average_metrics()
    assert list(averages) == ["avg_ce_loss", "avg_length_cost"]
    for name in ("ce_loss", "length_cost"):
        mean = sum(metrics[name] for metrics in said) / 3
        assert averages[f"avg_{name}"] == pytest.approx(mean)
    trainer.reset_statistics()
    assert trainer.num_batches == 0


def test_what_cannot_be_scored_or_moved_is_refused() -> None:
    trainer = trainer_of(wrapped())
    with pytest.raises(ConfigError, match="no batch"):
        trainer.evaluate([])
    with pytest.raises(ConfigError, match="one token for each of the 72 logits"):
        trainer.train_step(tokens(), tokens()[:2])
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"device=cuda, but torch sees no GPU"):
            LearnedSequenceLengthTrainer(trainer.model, trainer.optimizer, device="cuda")
