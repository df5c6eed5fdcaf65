"""Evaluation of what a model leaves out, and of kinds that take turns. W windows, N sites."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import in_team
from tiny import GO, STOP, VOCABULARY, random_tokens, steer, tiny_config, tiny_model
from torch import Tensor

from bkray.nn.build import built_in
from bkray.nn.length import LearnedLength
from bkray.nn.lm import Prediction
from bkray.train.evaluate import Evaluation, evaluate
from bkray.train.team import ALONE, Team

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)


def windows(n_windows: int = 7) -> tuple[Tensor, Tensor]:
    tokens = random_tokens(n_windows, 17)
    return tokens[:, :-1], tokens[:, 1:]


def learned(seed: int = 0, **knobs: Any) -> LearnedLength:
    """Return a model of bins 4, 8, 12 and 16 that cuts rows at lengths that differ."""
    torch.manual_seed(seed)
    config = tiny_config(**{"length": "learned", "length_bins": 4, **knobs})
    model = built_in(config.model, VOCABULARY).double().eval()
    assert isinstance(model, LearnedLength)
    with torch.no_grad():
        model.predictor.up.weight.mul_(20)
        model.predictor.down.weight.mul_(20)
    return model


def cut_at(model: LearnedLength, place: int) -> LearnedLength:
    """Let the predictor choose one bin for every row."""
    with torch.no_grad():
        model.predictor.down.bias.zero_()[place] = 1e9
    return model


def losses_and_lengths(model: LearnedLength, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        said = model(inputs)
    logp = said.logits_BNV.log_softmax(-1)
    return -logp.gather(-1, targets[..., None]).squeeze(-1), said.lengths.computed_B


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_lengths_are_told_of_every_row_and_losses_of_every_site(batch_size: int) -> None:
    model = learned()
    inputs, targets = windows(40)
    score = evaluate(model, inputs, targets, batch_size=batch_size, autocast=OFF)
    said = score.metrics
    loss_WN, length_W = losses_and_lengths(model, inputs, targets)
    is_inside_WN = torch.arange(16) < length_W[:, None]
    assert len(length_W.unique()) > 1, "the rows of this test differ"
    assert score.loss_nats == pytest.approx(loss_WN.mean().item(), rel=1e-12)
    expected = {
        "length/avg_length": length_W.double().mean().item(),
        "length/share_beyond": (~is_inside_WN).double().mean().item(),
        "length/loss_inside_nats": loss_WN[is_inside_WN].mean().item(),
        "length/loss_beyond_nats": loss_WN[~is_inside_WN].mean().item(),
        **{f"length/share_at_{n}": (length_W == n).double().mean().item() for n in (4, 8, 12, 16)},
    }
    seen = {name: value for name, value in said.items() if name.startswith("length/")}
    assert seen == pytest.approx(expected, rel=1e-12)


def test_a_bin_that_nobody_chose_is_told_and_a_loss_of_nothing_is_not() -> None:
    model = cut_at(learned(), 3)
    said = evaluate(model, *windows(), batch_size=4, autocast=OFF).metrics
    assert [said[f"length/share_at_{n}"] for n in (4, 8, 12, 16)] == [0, 0, 0, 1]
    assert said["length/share_beyond"] == 0.0
    assert "length/loss_beyond_nats" not in said
    assert said["depth/avg_layers_executed"] == 3.0


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_sites_behind_a_cut_ran_through_no_layer(place: int) -> None:
    said = evaluate(cut_at(learned(), place), *windows(), batch_size=4, autocast=OFF).metrics
    inside = (place + 1) / 4
    assert said["depth/avg_layers_executed"] == pytest.approx(3 * inside)
    shares = [said[f"depth/share_at_layer_{layer}"] for layer in range(4)]
    assert shares == pytest.approx([1 - inside, 0, 0, inside])
    assert not [name for name in said if name.startswith("act/")]


def test_halting_counts_sites_behind_a_cut_as_well() -> None:
    model = learned(depth="act")
    steer(model.model)
    inputs, targets = windows(40)
    said = evaluate(model, inputs, targets, batch_size=7, autocast=OFF).metrics
    with torch.no_grad():
        seen = model(inputs)
    layers, remainder = seen.layers_BN.double(), seen.remainder_BN
    assert layers.unique().tolist() == [0, 1, 2, 3]
    assert said["act/avg_layers_executed"] == pytest.approx(layers.mean().item())
    assert said["act/ponder_cost"] == pytest.approx((layers + remainder).mean().item())
    for layer in (1, 2, 3):
        share = (layers == layer).double().mean().item()
        assert said[f"act/share_at_layer_{layer}"] == pytest.approx(share)
    assert said["length/share_beyond"] == pytest.approx((layers == 0).double().mean().item())
    assert not [name for name in said if name.startswith("depth/")]


def test_an_input_longer_than_the_longest_bin_is_scored_as_a_whole() -> None:
    model = cut_at(learned(), 3)
    tokens = random_tokens(5, 41)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    score = evaluate(model, inputs, targets, batch_size=2, autocast=OFF)
    loss_WN, _ = losses_and_lengths(model, inputs, targets)
    assert loss_WN.shape == (5, 40)
    assert score.loss_nats == pytest.approx(loss_WN.mean().item(), rel=1e-12)
    assert score.metrics["length/avg_length"] == 16
    assert score.metrics["length/share_beyond"] == 0.6
    assert score.metrics["depth/avg_layers_executed"] == pytest.approx(3 * 0.4)


def test_an_input_shorter_than_a_bin_tells_no_more_sites_than_it_has() -> None:
    tokens = random_tokens(5, 11)
    said = evaluate(
        cut_at(learned(), 3), tokens[:, :-1], tokens[:, 1:], batch_size=2, autocast=OFF
    ).metrics
    shares = {name: said[name] for name in said if name.startswith("length/share_at_")}
    assert shares == {f"length/share_at_{n}": float(n == 10) for n in (4, 8, 10)}


class EveryOther(torch.nn.Module):
    """Says that odd sites ran through one layer of two, and nothing of halting."""

    def __init__(self, n_layers_even: int) -> None:
        super().__init__()
        self.plain, self.n_layers_even = tiny_model(), n_layers_even
        self.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(2))

    def forward(self, tokens: Tensor) -> Prediction:
        layers = torch.ones_like(tokens)
        layers[:, ::2] = self.n_layers_even
        return Prediction(self.plain(tokens).logits_BNV, layers)


@pytest.mark.parametrize(("even", "mean"), [(2, 1.5), (1, 1.0)])
def test_layers_are_told_wherever_a_site_did_not_run_through_all(even: int, mean: float) -> None:
    said = evaluate(EveryOther(even), *windows(), batch_size=4, autocast=OFF).metrics
    del said["context/late_loss_nats"]
    assert said.pop("depth/avg_layers_executed") == mean
    shares = [mean - 1] * (even - 1)
    assert list(said.values()) == [0.0, 2 - mean, *shares]
    assert list(said) == [f"depth/share_at_layer_{layer}" for layer in range(even + 1)]


def test_kinds_take_turns_and_each_has_its_loss() -> None:
    model = learned()
    inputs, targets = windows(11)
    score = evaluate(
        model, inputs, targets, batch_size=4, autocast=OFF, kinds=("patterns", "text", "uniform")
    )
    loss_WN, length_W = losses_and_lengths(model, inputs, targets)
    for place, kind in enumerate(("patterns", "text", "uniform")):
        loss = loss_WN[place::3].mean().item()
        assert score.metrics[f"kinds/{kind}/loss_nats"] == pytest.approx(loss, rel=1e-12)
        assert score.metrics[f"kinds/{kind}/ppl"] == pytest.approx(math.exp(loss), rel=1e-12)
        length = length_W[place::3].double().mean().item()
        assert score.metrics[f"kinds/{kind}/avg_length"] == pytest.approx(length)


def test_a_fixed_length_tells_kinds_without_one_and_none_without_windows() -> None:
    inputs, targets = windows(2)
    said = evaluate(
        tiny_model(), inputs, targets, batch_size=4, autocast=OFF, kinds=("a", "b", "c")
    )
    assert set(said.metrics) == {
        "context/late_loss_nats",
        *(f"kinds/{kind}/{of}" for kind in "ab" for of in ("loss_nats", "ppl")),
    }
    halves = [said.metrics[f"kinds/{kind}/loss_nats"] for kind in "ab"]
    assert said.loss_nats == pytest.approx(sum(halves) / 2, rel=1e-12)


def test_a_nan_stays_in_its_kind() -> None:
    model = tiny_model()
    inputs, targets = windows(6)
    inputs[1::2], inputs[::2] = STOP, GO
    with torch.no_grad():
        model.embedding.weight[STOP] = torch.nan
    said = evaluate(model, inputs, targets, batch_size=4, autocast=OFF, kinds=("fine", "broken"))
    assert math.isnan(said.loss_nats)
    assert math.isnan(said.metrics["kinds/broken/ppl"])
    assert math.isfinite(said.metrics["kinds/fine/ppl"])


def _scored(team: Team, n_windows: int) -> Evaluation:
    model = learned(depth="act")
    steer(model.model)
    return evaluate(
        model,
        *windows(n_windows),
        batch_size=2,
        autocast=OFF,
        kinds=("a", "b", "c"),
        team=team,
    )


@pytest.mark.slow
@pytest.mark.parametrize("n_windows", [2, 11])
def test_a_team_adds_up_to_one_process(n_windows: int, tmp_path: Path) -> None:
    alone = _scored(ALONE, n_windows)
    for said in in_team(3, tmp_path, _scored, n_windows):
        assert said.loss_nats == pytest.approx(alone.loss_nats, rel=1e-12)
        assert said.metrics == pytest.approx(alone.metrics, rel=1e-12)
