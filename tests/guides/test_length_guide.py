"""The guides' wrapper with learned length. Letters: B batch, N sites."""

import copy
import math
from typing import Any

import pytest
import torch
from guided import N, V, small, tokens
from lengthy import BASES, wrapped
from torch import nn

from bkray.errors import ConfigError
from bkray.guides import AdaptiveSequenceLengthWrapper


@torch.no_grad()
@pytest.mark.parametrize("name", BASES)
def test_inside_the_cut_the_numbers_are_those_of_the_base_model(name: str) -> None:
    model, x = wrapped(name, beyond="repeat"), tokens(48)
    plain = model(x, use_adaptive_length=False)
    assert torch.equal(plain, model.language_model(x).logits_BNV)
    logits, info = model(x, use_adaptive_length=True)
    lengths = info["predicted_lengths"].tolist()
    assert len(set(lengths)) >= 3, "rows must be cut unevenly for this to mean much"
    for row, n in enumerate(lengths):
        assert (logits[row, :n] - plain[row, :n]).abs().max() <= 1e-10
        assert torch.equal(logits[row, n:], logits[row, n - 1].expand(N - n, V))
    layers = info["prediction"].layers_BN
    assert torch.equal((layers > 0).sum(1), info["predicted_lengths"])
    assert name == "standard" or layers.unique().numel() >= 3, "and tokens stop unevenly"


@torch.no_grad()
def test_without_adaptive_length_it_is_the_base_model() -> None:
    model = wrapped()
    assert torch.equal(model(tokens()), model.base_model(tokens()))
    model = wrapped("act")
    assert torch.equal(model(tokens()), model.base_model(tokens(), return_ponder_cost=False))
    assert model.get_length_statistics()["total_predictions"] == 0


@torch.no_grad()
def test_what_is_said_of_the_lengths_adds_up() -> None:
    model = wrapped()
    fresh = model.get_length_statistics()
    assert fresh["total_predictions"] == 0
    assert math.isnan(fresh["avg_predicted_length"])
    lengths, sites = [], 0
    for seed, n_rows, n_sites in ((0, 8, N), (1, 4, N), (2, 5, 20)):
        model.train(seed == 1)
        _, info = model(tokens(n_rows, n_sites, seed), use_adaptive_length=True)
        predicted = info["predicted_lengths"].tolist()
        assert info["avg_predicted_length"] == pytest.approx(sum(predicted) / n_rows)
        assert info["max_predicted_length"] == max(predicted) <= n_sites
        assert info["original_length"] == n_sites
        assert info["speedup_estimate"] == pytest.approx(n_rows * n_sites / sum(predicted))
        assert (info["length_probs"].sum(1) - 1).abs().max() <= 1e-10
        if seed != 1:
            assert torch.equal(info["prediction"].lengths.computed_B, info["predicted_lengths"])
        lengths += predicted
        sites += n_rows * n_sites
    said = model.get_length_statistics()
    assert said["total_predictions"] == 17
    assert said["length_bins"] == [6, 12, 18, 24]
    assert sum(said["length_distribution"]) == pytest.approx(100)
    assert said["length_distribution"][0] == pytest.approx(100 * lengths.count(6) / 17)
    assert said["avg_predicted_length"] == pytest.approx(sum(lengths) / 17)
    assert said["avg_speedup"] == pytest.approx(sites / sum(lengths))
    model.reset_length_statistics()
    assert model.get_length_statistics()["total_predictions"] == 0


@torch.no_grad()
@pytest.mark.parametrize("beyond", ["repeat", "shallow", "copy"])
@pytest.mark.parametrize("longest", [16, N])
def test_an_input_longer_than_the_longest_length_is_cut_there_and_says_so(
    longest: int, beyond: str
) -> None:
    model, x = wrapped(max_seq_len=longest, beyond=beyond), tokens(16, N + 7)
    for training in (False, True):
        model.train(training)
        logits, info = model(x, use_adaptive_length=True)
        assert logits.shape == (16, N + 7, V)
        assert info["sites_behind_max"] == N + 7 - longest
        computed = info["prediction"].lengths.computed_B
        assert (computed == longest).all() if training else computed.unique().numel() > 1
        short, said = model(x[:, :longest], use_adaptive_length=True)
        assert said["sites_behind_max"] == 0
        assert (logits[:, :longest] - short).abs().max() <= 1e-10
        x_later = torch.cat([x[:, : N + 3], x[:, N + 3 :].flip(1)], dim=1)
        later, _ = model(x_later, use_adaptive_length=True)
        assert (logits[:, : N + 3] - later[:, : N + 3]).abs().max() <= 1e-10
        targets = tokens(16, N + 7, seed=3)
        ce = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        assert model.compute_loss(logits, targets, info)[1].item() == pytest.approx(ce.item())
    with pytest.raises(ConfigError, match="got 31 tokens"):
        model(x)


@torch.no_grad()
def test_behind_the_last_position_all_stand_there() -> None:
    model = wrapped(beyond="shallow")
    nn.init.constant_(model.length_predictor.predictor.down.bias[:1], 1e6)
    logits, info = model(torch.full((1, N + 7), 3), use_adaptive_length=True)
    assert info["max_predicted_length"] == 6
    assert (logits[0, N - 1 :] - logits[0, N - 1]).abs().max() <= 1e-10
    assert (logits[0, N - 2] - logits[0, N - 1]).abs().max() > 1e-3


def test_the_ponder_cost_of_an_act_model_stays_within_reach() -> None:
    model = wrapped("act").train()
    base: Any = model.base_model
    logits, info = model(tokens(), use_adaptive_length=True)
    plain, ponder = base(tokens())
    assert torch.equal(logits, plain)
    assert info["ponder_cost"] == ponder
    torch.autograd.backward(info["ponder_cost"])
    assert all(block.halting_unit.down.bias.grad < 0 for block in base.blocks[:-1])
    base.avg_layers_executed = torch.tensor(math.nan)
    _, info = model.eval()(tokens(), use_adaptive_length=True)
    mean = info["prediction"].layers_BN.double().mean()
    assert base.get_avg_layers_executed() == pytest.approx(mean.item(), rel=1e-6)


def test_the_loss_in_evaluation_is_that_of_the_length_which_was_used() -> None:
    model, x = wrapped("act", length_penalty=0.5), tokens(8)
    base: Any = model.base_model
    base.act_lambda = 0.3
    logits, info = model(x, use_adaptive_length=True)
    total, ce, cost = model.compute_loss(logits, x.flatten(), info)
    assert cost.item() == pytest.approx(0.5 * info["avg_predicted_length"] / N)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), x.flatten())
    assert ce.item() == pytest.approx(expected.item())
    assert total.item() == pytest.approx((ce + cost + 0.3 * info["ponder_cost"]).item())
    alone = [said.item() for said in model.compute_loss(logits, x)]
    assert alone == [ce.item(), ce.item(), 0]


def test_a_model_can_be_copied_and_saves_every_weight_once() -> None:
    model, x = wrapped(), tokens()
    model.train()(x, use_adaptive_length=True)
    twin = copy.deepcopy(model).eval()
    model.eval()
    both = [one(x, use_adaptive_length=True)[0] for one in (model, twin)]
    assert torch.equal(*both)
    assert len(model.state_dict()) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"max_seq_len": N + 1}, r"max_seq_len must be at most n_seq=24 .*got 25"),
        ({"max_seq_len": 2}, r"must grow from at least 1 to max_seq_len=2"),
        ({"num_length_bins": 0}, r"num_length_bins must be at least 1, got 0"),
        ({"length_penalty": -0.1}, r"^length_penalty: .*got -0.1"),
        ({"length_penalty": math.nan}, r"^length_penalty: .*got nan"),
        ({"beyond": "guess"}, r"beyond: .*'repeat', 'shallow' or 'copy', got 'guess'"),
    ],
)
def test_a_mistake_is_told_where_it_is_made(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        wrapped(**knobs)


def test_what_is_not_a_language_model_cannot_be_wrapped() -> None:
    with pytest.raises(ConfigError, match="language model of bkray, got Linear"):
        AdaptiveSequenceLengthWrapper(nn.Linear(2, 2))
    bare = small().language_model
    assert AdaptiveSequenceLengthWrapper(bare, N)(tokens()).shape == (3, N, V)
    model = wrapped()
    with pytest.raises(ConfigError, match=r"one token for each of the 72 logits, got shape \(24,"):
        model.compute_loss(model(tokens()), tokens()[0])
