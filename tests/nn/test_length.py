"""Learned length: bins, the predictor, cuts, and what is answered behind them.

Letters: B batch, N sites, V vocabulary, K bins.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from tiny import MIXERS, VOCABULARY, random_tokens, tiny_config
from torch import Tensor

from bkray.errors import ConfigError
from bkray.nn.beyond import Copy
from bkray.nn.bins import checked_bins, length_bins, passes
from bkray.nn.build import built_in
from bkray.nn.length import LearnedLength
from bkray.nn.lm import Prediction
from bkray.nn.own_model import largest_leak
from bkray.ops.copying import longest_follower
from bkray.train.lengths import table
from bkray.train.step import token_loss_nats

SITES = 16
BEYOND = ("repeat", "shallow", "copy")
COMBINATIONS = list(itertools.product(MIXERS, ("dense", "act"), BEYOND))


def learned(mixer: str = "linear_recurrence", **knobs: Any) -> LearnedLength:
    """Return a model in evaluation mode that cuts ``varied_rows`` at lengths that differ."""
    bins = {} if "length_list" in knobs else {"length_bins": 4}
    config = tiny_config(mixer, length="learned", **bins, **knobs).model
    for seed in range(50):
        torch.manual_seed(seed)
        model = built_in(config, VOCABULARY).double().eval()
        assert isinstance(model, LearnedLength)
        with torch.no_grad():
            logit_BK = model.predictor(model.model.embed(varied_rows()))
        if len(logit_BK.argmax(1).unique()) > 1:
            return model
    raise AssertionError("no predictor tells the rows apart")


def varied_rows(n_sites: int = SITES) -> Tensor:
    return torch.cat([random_tokens(5, n_sites), random_tokens(1, 1).expand(1, n_sites)])


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def model(request: pytest.FixtureRequest) -> LearnedLength:
    mixer, depth, beyond = request.param
    return learned(mixer, depth=depth, length_beyond=beyond)


def test_bins_are_even_or_double_and_end_at_the_whole() -> None:
    assert length_bins("linear", 8, 128) == (16, 32, 48, 64, 80, 96, 112, 128)
    assert length_bins("exponential", 4, 128) == (16, 32, 64, 128)
    for layout, n_bins, longest in itertools.product(
        ("linear", "exponential"), (2, 4, 8, 16), (16, 100, 128, 8192)
    ):
        bins = length_bins(layout, n_bins, longest)  # type: ignore[arg-type]
        assert len(bins) == n_bins
        assert bins[-1] == longest
        assert list(bins) == sorted(set(bins))


@pytest.mark.parametrize("bins", [(), (0, 16), (8, 8, 16), (16, 8), (4, 12)])
def test_bins_that_do_not_grow_to_the_whole_are_refused(bins: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="must grow from at least 1 to max_seq_len=16"):
        checked_bins(bins, 16)
    with pytest.raises(ConfigError, match="use fewer bins"):
        length_bins("linear", 17, 16)


@torch.no_grad()
def test_rows_are_cut_where_the_predictor_says(model: LearnedLength) -> None:
    tokens = varied_rows()
    said: Prediction = model(tokens)
    assert said.lengths is not None
    lengths = said.lengths.computed_B
    whole = model.model(tokens)
    assert said.layers_BN is not None
    for row, n_sites in enumerate(lengths.tolist()):
        inside = (said.logits_BNV - whole.logits_BNV)[row, :n_sites]
        assert inside.abs().max() <= 1e-10
        assert (said.layers_BN[row, n_sites:] == 0).all()
        assert (said.layers_BN[row, :n_sites] >= 1).all()


@torch.no_grad()
def test_every_bin_costs_what_the_table_of_one_pass_says(model: LearnedLength) -> None:
    tokens = varied_rows(SITES + 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    model.train()
    said: Prediction = model(inputs)
    assert said.lengths is not None
    table_BK = table(said, said.lengths, token_loss_nats(said, targets), targets)
    model.eval()
    for k in range(len(model.predictor.bins)):
        model.predictor.down.bias.zero_()[k] = 1e9
        cut = model(inputs)
        assert (cut.lengths.computed_B == model.predictor.bins[k]).all()
        assert (token_loss_nats(cut, targets).sum(1) - table_BK[:, k]).abs().max() < 1e-10


@torch.no_grad()
def test_no_future_token_moves_a_logit(model: LearnedLength) -> None:
    assert model.causal
    assert largest_leak(model, varied_rows(), VOCABULARY) <= 1e-10


@torch.no_grad()
def test_a_predictor_that_sees_the_whole_row_sees_the_future_and_says_so() -> None:
    model = learned(length_scope="full")
    assert not model.causal
    assert largest_leak(model, varied_rows(), VOCABULARY) > 1e-6


@torch.no_grad()
def test_grouping_changes_no_number_but_the_batch_maximum_does() -> None:
    tokens = varied_rows()
    by_length = learned()(tokens).logits_BNV
    alone = learned(length_grouping="per_sequence")(tokens).logits_BNV
    assert (by_length - alone).abs().max() <= 1e-10
    maximum: Prediction = learned(length_grouping="batch_maximum")(tokens)
    assert maximum.lengths is not None
    assert len(maximum.lengths.computed_B.unique()) == 1
    assert (by_length - maximum.logits_BNV).abs().max() > 1e-6


@pytest.mark.parametrize("seed", range(8))
def test_rows_share_passes_so_that_all_together_cost_least(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.choice((8, 16, 24, 64, 128)) for _ in range(draw.randint(1, 7))]
    price = draw.choice((0, 20, 128))

    def cost(groups: Iterable[Sequence[int]]) -> int:
        return sum(price + len(rows) * max(lengths[row] for row in rows) for rows in groups)

    found = passes(lengths, price)
    assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
    assert cost(found) == min(map(cost, partitions(list(range(len(lengths))))))


def partitions(rows: list[int]) -> Iterator[list[list[int]]]:
    if not rows:
        yield []
        return
    for rest in partitions(rows[1:]):
        yield [[rows[0]], *rest]
        for i, group in enumerate(rest):
            yield [*rest[:i], [rows[0], *group], *rest[i + 1 :]]


@torch.no_grad()
def test_rows_that_share_a_pass_say_what_they_say_alone(model: LearnedLength) -> None:
    tokens = varied_rows()
    said: Prediction = model(tokens)
    assert said.lengths is not None
    assert len(said.lengths.computed_B.unique()) > 1
    rows_per_pass: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: rows_per_pass.append(len(args[0])))
    model(tokens)
    assert rows_per_pass == [len(tokens)], "few short rows: one pass for all lengths"
    for row in range(len(tokens)):
        alone: Prediction = model(tokens[row : row + 1])
        assert (alone.logits_BNV[0] - said.logits_BNV[row]).abs().max() <= 1e-10
        assert torch.equal(alone.layers_BN[0], said.layers_BN[row])  # type: ignore[index]


@torch.no_grad()
def test_sites_behind_the_longest_bin_are_answered_too(model: LearnedLength) -> None:
    tokens = varied_rows(SITES + 5)
    said: Prediction = model(tokens)
    assert said.logits_BNV.shape == (6, SITES + 5, VOCABULARY)
    assert said.lengths is not None
    assert said.lengths.computed_B.max() <= SITES
    short = model(tokens[:, :2])
    assert (short.lengths.computed_B <= 2).all()
    assert (short.logits_BNV - model.model(tokens[:, :2]).logits_BNV).abs().max() <= 1e-10


@torch.no_grad()
def test_a_copy_is_mixed_in_with_the_probability_it_is_trusted_with() -> None:
    model = learned(length_beyond="copy").train()
    assert isinstance(model.beyond, Copy)
    tokens = varied_rows()
    mixed = model._behind(tokens, model.model.embed(tokens), 3).logits().softmax(-1)
    copied_BN, run_BN = longest_follower(tokens, Copy.N_RUNS)
    trust = model.beyond.trust.sigmoid()
    model.beyond = model.beyond.shallow
    shallow = model._behind(tokens, model.model.embed(tokens), 3).logits().softmax(-1)
    for row, t in itertools.product(range(len(tokens)), range(3, SITES)):
        plain = shallow[row, t - 3].clone()
        if run_BN[row, t] >= 0:
            weight = trust[run_BN[row, t]]
            plain *= 1 - weight
            plain[copied_BN[row, t]] += weight
        assert (mixed[row, t - 3] - plain).abs().max() < 1e-12
    assert (run_BN >= 0).any() and (run_BN < 0).any()


@torch.no_grad()
def test_a_trusted_copy_repeats_a_pattern() -> None:
    model = learned(length_beyond="copy", length_list="8,16").train()
    model.beyond.trust.fill_(20.0)  # type: ignore[union-attr]
    pattern = torch.tensor([[3, 5, 2] * 6])
    said: Prediction = model(pattern[:, :SITES])
    assert said.lengths is not None and said.lengths.beyond is not None
    answers = said.lengths.beyond.logits()[0].argmax(-1)
    assert torch.equal(answers, pattern[0, 9 : SITES + 1])


@pytest.mark.parametrize("train_cut", [0.0, 0.5])
def test_training_computes_all_rows_but_a_share_drawn_at_random(train_cut: float) -> None:
    model = learned(length_train_cut=train_cut).train()
    torch.manual_seed(1)
    tokens = random_tokens(200, SITES)
    said: Prediction = model(tokens)
    assert said.lengths is not None
    chosen = torch.tensor(model.predictor.bins)[said.lengths.logit_BK.argmax(1)]
    could = chosen < SITES
    cut = said.lengths.computed_B < SITES
    assert could.any()
    assert not cut[~could].any()
    share = float(cut[could].double().mean())
    assert abs(share - train_cut) < (0.15 if train_cut else 1e-12)
    assert torch.equal(said.lengths.computed_B[cut], chosen[cut])
