"""Best bins against trying everything, and a curve over levels against a loop over tokens.

Letters: E examples, N candidate lengths, S tokens, L layers, T levels, V vocabulary.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from benchmarks.frontier import falling_table, random_table
from bkray.errors import ConfigError
from bkray.ops.frontier import best_bins, exhaustive, greedy_with_swaps, stop_curve
from bkray.ops.sureness import Rule, sureness


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_mean(table: Tensor, columns: tuple[int, ...]) -> float:
    return sum(min(float(row[c]) for c in columns) for row in table) / len(table)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_the_best_bins_are_the_best_of_all_sets(k: int) -> None:
    lengths = (3, 5, 8, 10, 13, 15, 20)
    for seed in range(3):
        table, price = random_table(7, seed), 0.4
        cost = table + price * torch.tensor(lengths, dtype=torch.float64) / 20
        found = best_bins(table, lengths, k, price)
        sets = list(itertools.combinations(range(7), k))
        best = min(sets, key=lambda columns: plain_mean(cost, columns))
        assert found.is_exhaustive
        assert found.lengths == tuple(lengths[c] for c in best)
        for row, chosen in zip(cost, found.chosen_E.tolist(), strict=True):
            assert lengths[chosen] in found.lengths
            assert float(row[chosen]) == min(float(row[c]) for c in best)


def test_a_higher_price_chooses_shorter_lengths() -> None:
    lengths, table = tuple(range(1, 17)), falling_table(16, seed=0)
    columns = [best_bins(table, lengths, 4, price).chosen_E for price in (0.0, 0.3, 3.0)]
    means = [float(chosen.double().mean()) for chosen in columns]
    assert means[0] > means[1] > means[2]


@pytest.mark.parametrize("make", [random_table, falling_table])
@pytest.mark.parametrize(("n_candidates", "k"), [(8, 2), (12, 4), (16, 3), (16, 8)])
def test_swaps_come_within_two_percent_of_the_best(make, n_candidates: int, k: int) -> None:  # type: ignore[no-untyped-def]
    for seed in range(10):
        cost = make(n_candidates, seed)
        quick, (best,) = greedy_with_swaps(cost, k), exhaustive(cost, [k])
        assert len(set(quick)) == k
        assert plain_mean(cost, best) <= plain_mean(cost, quick) <= 1.02 * plain_mean(cost, best)


def test_many_candidates_are_searched_greedily_and_it_says_so() -> None:
    found = best_bins(falling_table(17, seed=1), tuple(range(1, 18)), 3, 0.1)
    assert not found.is_exhaustive
    assert len(found.lengths) == 3
    assert list(found.lengths) == sorted(found.lengths)


@pytest.mark.parametrize("k", [0, 4])
def test_more_bins_than_lengths_are_an_error(k: int) -> None:
    with pytest.raises(ConfigError, match=f"must be 1 to 3, got {k}"):
        best_bins(random_table(3, 0), (1, 2, 3), k, 0.1)


def test_a_curve_is_what_a_loop_over_tokens_says() -> None:
    scores = torch.rand(30, 3, dtype=torch.float64, generator=drawn(1))  # not growing: an exit's
    losses = torch.rand(30, 4, dtype=torch.float64, generator=drawn(2))
    on_a_tie = float(scores[0, 0])
    levels = torch.tensor([0.7, 0.2, on_a_tie, 0.0, 2.0], dtype=torch.float64)
    layers, loss = stop_curve(scores, losses, levels)
    for i, level in enumerate(levels.tolist()):
        stops = [next((n for n in range(3) if row[n] >= level), 3) for row in scores.tolist()]
        plain = sum(float(losses[token, at]) for token, at in enumerate(stops)) / 30
        assert float(layers[i]) == pytest.approx(1 + sum(stops) / 30, abs=1e-12)
        assert float(loss[i]) == pytest.approx(plain, abs=1e-12)


def test_sureness_is_the_largest_probability_or_the_negative_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]], dtype=torch.float64)
    assert sureness(logits, "confidence").tolist() == pytest.approx([0.5, 0.75])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert sureness(logits, "entropy").tolist() == pytest.approx([-math.log(2.0), -entropy])


@pytest.mark.parametrize("rule", ["confidence", "entropy"])
def test_sureness_is_nan_where_a_logit_is_and_nowhere_else(rule: Rule) -> None:
    logits = torch.randn(2, 3, 5, generator=drawn(0))
    logits[1, 2, 4] = math.nan
    said = sureness(logits, rule)
    assert said.isnan().nonzero().tolist() == [[1, 2]]
    plain = [[float(sureness(logits[i, j], rule)) for j in range(3)] for i in range(2)]
    assert said.nan_to_num().tolist() == [
        pytest.approx(row) for row in (plain[0], [*plain[1][:2], 0.0])
    ]
