"""Winner, tie or undecided: what the seeds must show for each, and what divergence counts."""

import itertools
import math

import numpy as np
import pytest

from bkray.errors import ConfigError
from bkray.stats import Comparison, compare, holm, holm_adjusted, least_pairs, sign_flip_p
from bkray.stats.paired import MOST_FURTHER

MARGIN = 0.02
LOST = math.inf


def against(ours: list[float], theirs: list[float], margin: float = MARGIN) -> Comparison:
    return compare({"rival": list(zip(ours, theirs, strict=True))}, margin=margin)["rival"]


def test_all_seeds_better_is_a_win_and_the_mirror_a_loss() -> None:
    ours = [1.0, 1.1, 1.2, 1.0, 0.9, 1.3, 1.0, 1.1]
    theirs = [one + 0.1 + 0.01 * i for i, one in enumerate(ours)]
    won, lost = against(ours, theirs), against(theirs, ours)
    assert (won.verdict, won.we_win, won.further_seeds) == ("winner", True, 0)
    assert (lost.verdict, lost.we_win) == ("winner", False)
    assert won.p == lost.p == 2 / 256
    assert won.difference is not None and won.difference.mean == pytest.approx(0.135)


def test_a_tie_needs_evidence_that_the_difference_is_small() -> None:
    close = [1.0, 1.001, 0.999, 1.002, 1.0, 0.998, 1.001, 1.0]
    tie = against(close, close[::-1])
    assert (tie.verdict, tie.we_win, tie.further_seeds) == ("tie", None, 0)
    noisy = [1.0, 1.1, 0.9, 1.2, 0.8, 1.05, 0.95, 1.0]
    said = against(noisy, noisy[3:] + noisy[:3])
    assert said.verdict == "undecided"  # not significant alone makes no tie
    assert said.further_seeds > 0


def test_too_few_pairs_decide_nothing_whatever_they_say() -> None:
    for n in range(6):
        said = against([1.0] * n, [2.0] * n)
        assert (said.verdict, said.further_seeds) == ("undecided", 6 - n)
    assert against([1.0] * 6, [2.0] * 6).verdict == "winner"
    three = compare({name: [(1.0, 2.0)] * 6 for name in "abc"}, margin=MARGIN)
    assert {(one.verdict, one.further_seeds) for one in three.values()} == {("undecided", 1)}
    equal = compare({name: [(1.0, 1.0)] * 6 for name in "abc"}, margin=MARGIN)
    assert {one.verdict for one in equal.values()} == {"undecided"}
    assert [least_pairs(n, 0.05) for n in (1, 2, 3, 4)] == [6, 7, 7, 8]


def test_a_rival_that_diverged_has_lost_that_seed() -> None:
    ours = [1.0] * 8
    assert against(ours, [LOST] * 8).p == 2 / 256
    assert against(ours, [1.1] * 7 + [LOST]).we_win is True
    assert against([*ours[:7], LOST], [1.1] * 8).verdict == "undecided"
    # one divergence outweighs seven finite wins: no winner, for one seed is no evidence
    said = against(ours, [0.9] * 7 + [LOST])
    assert (said.verdict, said.difference) == ("undecided", None)


@pytest.mark.parametrize("n_lost", [1, 2, 5, 8])
def test_divergence_is_the_limit_of_penalties_that_grow(n_lost: int) -> None:
    rng = np.random.default_rng(n_lost)
    finite = [float(one) for one in rng.normal(-0.3, 1.0, size=8 - n_lost)]
    said = against([0.0] * 8, finite + [LOST] * n_lost)
    penalised = [sign_flip_p(finite + [penalty] * n_lost) for penalty in (1e3, 1e5, 1e7)]
    assert penalised == [said.p] * 3


def test_divergence_is_counted_exactly_by_hand() -> None:
    """Penalties first, then the finite rest: the sums of every choice of signs as pairs."""
    rest = [-0.1, -0.2, -0.3]
    seen = (5, sum(rest))
    as_far = 0
    for signs in itertools.product((-1, 1), repeat=8):
        lost = sum(signs[:5])
        finite = sum(sign * one for sign, one in zip(signs[5:], rest, strict=True))
        size = (abs(lost), finite * math.copysign(1, lost)) if lost else (0, abs(finite))
        as_far += size >= (seen[0], seen[1] - 1e-12)
    assert against([0.0] * 8, [LOST] * 5 + rest).p == as_far / 256


def test_two_that_diverged_are_equal_and_prove_no_tie() -> None:
    said = against([LOST] * 8, [LOST] * 8)
    assert (said.p, said.verdict, said.p_tie) == (1.0, "undecided", 1.0)
    both = against([LOST, *[1.0] * 7], [LOST, *[1.1] * 7])
    assert (both.verdict, both.we_win, both.p) == ("winner", True, 4 / 256)


def test_holm_tests_the_family_of_rivals() -> None:
    clear = [(1.0, 1.1 + 0.01 * i) for i in range(8)]
    marginal = [(1.0, 1.0 + one) for one in (0.1, 0.1, 0.1, 0.1, 0.1, 0.03, 0.03, -0.05)]
    alone = compare({"a": marginal}, margin=MARGIN)["a"]
    assert alone.verdict == "winner" and 0.05 / 2 < alone.p <= 0.05
    three = compare({"a": marginal, "b": marginal, "c": clear}, margin=MARGIN)
    assert [one.verdict for one in three.values()] == ["undecided", "undecided", "winner"]
    assert three["a"].p == alone.p < three["a"].p_holm


def test_adjusted_p_values_say_what_holm_says() -> None:
    assert holm_adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_adjusted([]) == [] and holm_adjusted([0.9, 0.8]) == [1.0, 1.0]
    draws = np.random.default_rng(0).random((200, 4)) ** 3
    for ps in draws.tolist():
        assert holm(ps, 0.05) == [one <= 0.05 for one in holm_adjusted(ps)]


def test_further_seeds_follow_effect_and_spread() -> None:
    pattern = np.array([1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 1.5, -1.5])

    def asked(effect: float, spread: float) -> int:
        values = effect + spread * pattern
        said = compare({"r": [(0.0, float(v)) for v in values]}, margin=MARGIN)["r"]
        assert said.verdict == "undecided"
        return said.further_seeds

    assert asked(0.1, 0.1) < asked(0.1, 0.2) < asked(0.1, 0.3)
    # an effect of 0.5 deviations, power 80% at 5%: (1.96 + 0.84)^2 / 0.25 = 31.4 pairs
    assert asked(0.5 * float(pattern.std(ddof=1)), 1.0) == 32
    assert asked(1e-6, 10.0) == MOST_FURTHER
    assert asked(0.0, 0.02) < MOST_FURTHER  # few more would show a tie


def test_the_further_seeds_that_are_asked_for_decide() -> None:
    rng = np.random.default_rng(3)
    effect, n = 0.8, 8
    n = against([0.0] * n, list(map(float, effect + _standard(n)))).further_seeds
    draws = rng.normal(effect, 1.0, size=(400, n))
    found = np.mean([against([0.0] * n, row).verdict == "winner" for row in draws.tolist()])
    assert found >= 0.7


def test_a_fresh_test_of_the_further_seeds_alone_keeps_its_level() -> None:
    """A/A, following the advice up to five times: each test is of seeds that no other one saw."""
    rng = np.random.default_rng(5)
    n_false = [0] * 5
    for _ in range(200):
        n = 8
        for look in range(5):
            said = against([0.0] * n, rng.normal(size=n).tolist())
            n_false[look] += said.verdict == "winner"
            if said.verdict != "undecided":
                break
            n = min(said.further_seeds, 12)
            assert n >= 6
    assert max(n_false) <= 0.09 * 200


def _standard(n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return values of mean 0 and deviation 1 that are not yet enough to decide by."""
    values = np.array([-1.9, 1.4, 0.9, -0.6, 0.4, 0.2, -0.3, -0.1])[:n]
    return (values - values.mean()) / values.std(ddof=1)


def test_a_family_against_itself_has_few_false_winners() -> None:
    """A/A: disjoint seeds of one family, 1,000 draws of 8 against 8 from a pool with the skew that
    losses have."""
    rng = np.random.default_rng(0)
    pool = 2.0 + 0.02 * rng.gamma(4.0, size=64)
    false = ties = 0
    for _ in range(1000):
        drawn = rng.permutation(pool)[:16].tolist()
        said = against(drawn[:8], drawn[8:])
        false += said.verdict == "winner"
        ties += said.verdict == "tie"
    assert false <= 65
    assert false + ties < 1000


def test_three_rivals_that_are_the_same_have_few_false_winners_together() -> None:
    rng = np.random.default_rng(1)
    n_false = 0
    for _ in range(600):
        ours, *rivals = (2.0 + 0.02 * rng.gamma(4.0, size=(4, 8))).tolist()
        pairs = {str(i): list(zip(ours, one, strict=True)) for i, one in enumerate(rivals)}
        n_false += any(c.verdict == "winner" for c in compare(pairs, margin=MARGIN).values())
    assert n_false <= 0.065 * 600


@pytest.mark.parametrize(("n_rivals", "least"), [(1, 0.9), (3, 0.8)])
def test_two_standard_deviations_are_found_with_eight_seeds(n_rivals: int, least: float) -> None:
    """Seeds without anything in common, the hardest case; rivals are worse by two deviations."""
    rng = np.random.default_rng(2)
    found = 0
    n_draws = 1000 // n_rivals
    for _ in range(n_draws):
        ours, *rivals = rng.normal(size=(1 + n_rivals, 8)).tolist()
        pairs = {
            str(i): [(a, b + 2.0) for a, b in zip(ours, one, strict=True)]
            for i, one in enumerate(rivals)
        }
        found += sum(c.we_win is True for c in compare(pairs, margin=MARGIN).values())
    assert found >= least * n_draws * n_rivals


def test_true_differences_as_large_as_the_margin_are_rarely_called_ties() -> None:
    rng = np.random.default_rng(4)
    draws = rng.normal(MARGIN, 0.01, size=(600, 8))
    n_ties = sum(against([0.0] * 8, row).p_tie <= 0.05 for row in draws.tolist())
    assert n_ties <= 0.065 * 600


@pytest.mark.parametrize(("pairs", "margin"), [([(1.0, math.nan)], 0.1), ([(1.0, 2.0)], 0.0)])
def test_what_is_no_number_is_refused(pairs: list[tuple[float, float]], margin: float) -> None:
    with pytest.raises(ConfigError, match=r"NaN|margin"):
        compare({"rival": pairs}, margin=margin)
