"""The comparison as a value: its arms, their equal budgets, and what follows from the search."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bkray.cluster.ledger import Ledger
from bkray.cluster.schedulers import choose
from bkray.cluster.search import Proposal
from bkray.cluster.tuner import SweepOptions, planned, resolve
from bkray.errors import ConfigError
from bkray.nn.equal import n_params, with_mixer
from bkray.overrides import acting, build, flatten
from sweeps.compare import FAMILIES, OWN_SEED, SWEEP, arms, check_timed

Fate = Callable[[Proposal], tuple[str, float | None]]
"""Outcome and loss of a proposal."""

SEARCH_STEPS = 80


def options(**more: Any) -> SweepOptions:
    return SweepOptions(out=Path("none"), preset="small", **more)


def played(fate: Fate, **more: Any) -> list[Proposal]:
    """Return all proposals in their order, each answered as ``fate`` says."""
    ledger, seen = Ledger(None, resolve(SWEEP, options(**more))), []
    try:
        while (proposal := ledger.ask()) is not None:
            outcome, loss = fate(proposal)
            ledger.tell(proposal, [loss], outcome)
            seen.append(proposal)
    finally:
        ledger.close()
    return seen


def well(proposal: Proposal) -> tuple[str, float]:
    return "ok", abs(math.log(proposal.config.optimizer.lr / 0.005))


def rates_of(seen: list[Proposal], name: str) -> list[float]:
    return [p.config.optimizer.lr for p in seen if p.arm.startswith(f"search-{name}-lr")]


def families(seen: list[Proposal]) -> dict[str, Proposal]:
    return {one.arm: one for one in seen if one.arm in FAMILIES}


def test_every_family_has_the_same_search_and_the_same_seeds() -> None:
    seen = played(well)
    searched = [one for one in seen if one.arm.startswith("search-")]
    assert len(searched) == 3 * len(FAMILIES)
    for name in FAMILIES:
        own = [one for one in searched if one.config.model.mixer == FAMILIES[name]["model.mixer"]]
        assert [round(one.config.optimizer.lr, 6) for one in own] == [0.001667, 0.005, 0.015]
        assert {one.config.train.steps for one in own} == {SEARCH_STEPS}
        assert [one.n_seeds for one in own] == [1, 1, 1]
        assert {one.config.seed for one in own} == {OWN_SEED}
    assert list(families(seen)) == list(FAMILIES)
    assert {one.n_seeds for one in families(seen).values()} == {8}
    assert {one.seeded(7)["seed"] for one in families(seen).values()} == {7}


def test_families_take_equal_tokens_with_equal_parameters() -> None:
    seen = families(played(well))
    plans = [one.config for one in seen.values()]
    assert len({(c.train.steps, c.train.batch_size, c.model.n_seq) for c in plans}) == 1
    assert {c.model.n_seq for c in plans} == {512}
    sizes = [n_params(flatten(config)) for config in plans]
    assert max(sizes) < 1.005 * min(sizes)
    assert {config.train.speed_lengths for config in plans} == {None}


def test_each_family_goes_on_at_its_own_best_rate() -> None:
    best = dict(zip(FAMILIES, (0.005, 0.015, 0.005 / 3, 0.005), strict=False))

    def fate(p: Proposal) -> tuple[str, float]:
        wanted = next(rate for name, rate in best.items() if f"-{name}" in f"-{p.arm}")
        return "ok", abs(math.log(p.config.optimizer.lr / wanted))

    found = {name: one.config.optimizer.lr for name, one in families(played(fate)).items()}
    assert found == pytest.approx(best)


def test_a_search_goes_on_for_all_while_one_is_best_at_an_edge() -> None:
    def fate(p: Proposal) -> tuple[str, float]:
        wanted = 0.045 if "mamba" in p.arm else 0.004
        return "ok", abs(math.log(p.config.optimizer.lr / wanted))

    seen = played(fate)
    assert sorted(rates_of(seen, "mamba")) == pytest.approx(
        [0.005 / 3, 0.005, 0.015, 0.045, 0.135]
    )
    for name in FAMILIES:
        assert len(rates_of(seen, name)) == 5
        assert len({round(lr, 9) for lr in rates_of(seen, name)}) == 5
    inner = rates_of(seen, "attention")[3:]
    assert inner[0] == pytest.approx(0.005 / 3**0.5)  # towards the better neighbour
    assert 0.005 / 3**0.5 < inner[1] < 0.005
    found = families(seen)
    assert found["mamba"].config.optimizer.lr == pytest.approx(0.045)
    assert found["attention"].config.optimizer.lr == pytest.approx(inner[1])


def test_a_rate_that_diverges_is_not_taken() -> None:
    def fate(p: Proposal) -> tuple[str, float | None]:
        fell = p.config.optimizer.lr > 0.01
        return ("diverged", None) if fell else ("ok", -p.config.optimizer.lr)

    rates = {one.config.optimizer.lr for one in families(played(fate)).values()}
    assert sorted(rates) == pytest.approx([0.005])


def test_a_family_that_diverges_at_every_rate_is_not_left_out() -> None:
    def fate(p: Proposal) -> tuple[str, float | None]:
        fell = p.config.model.mixer == "attention" and "speed" not in p.arm
        return ("diverged", None) if fell else ("ok", 2.0)

    found = families(played(fate))
    assert list(found) == list(FAMILIES)
    assert found["attention"].config.optimizer.lr == pytest.approx(0.005 / 27)


def test_rivals_are_timed_beside_ours_at_every_length() -> None:
    timed = [one for one in played(well) if one.arm.startswith("speed-")]
    assert [one.arm for one in timed] == [f"speed-{name}" for name in FAMILIES if name != "bk"]
    assert {one.config.train.speed_lengths for one in timed} == {"2048,8192,32768"}
    assert {one.config.train.speed_reference_mixer for one in timed} == {"bk"}
    assert {(one.config.train.steps, one.n_seeds) for one in timed} == {(1, 1)}
    without = played(well, overrides={"train.speed_lengths": None})
    assert not [one for one in without if one.arm.startswith("speed-")]


def test_seeds_and_sizes_are_the_users() -> None:
    seen = played(well, seeds=3, overrides={"seed": 40, "model.d_model": 32})
    found = families(seen)
    assert {one.seeded(2)["seed"] for one in found.values()} == {42}
    assert {one.config.model.d_model for one in seen} == {32}
    assert {one.config.seed for one in seen if "search" in one.arm} == {40 + OWN_SEED}


@pytest.mark.parametrize(
    "fixed", [{"model.mixer": "attention"}, {"model.position": "none"}, {"model.build": "a:b"}]
)
def test_what_the_arms_set_is_refused(fixed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="leave"):
        planned(SWEEP, options(overrides=fixed))


@pytest.mark.parametrize(
    ("knob", "value"),
    [("n_heads", 4), ("n_values", 8), ("semiseparable_rank", 16), ("energies", "zero")],
)
def test_another_bk_than_the_one_timed_is_refused(knob: str, value: Any) -> None:
    fixed = {f"model.{knob}": value}
    with pytest.raises(ConfigError, match=rf"model\.{knob}={value} would not be timed"):
        planned(SWEEP, options(overrides=fixed))
    check_timed(build({**fixed, "train.speed_lengths": None}))


def test_the_bk_that_is_timed_is_the_one_compared() -> None:
    base = {"model.n_heads": 16, "model.d_model": 32, "train.speed_lengths": "128"}
    ours = build(base).model
    for arm in (one for one in arms(base) if one.name.startswith("speed-")):
        rival = build(acting({**base, **arm.overrides})).model
        timed = build(with_mixer(rival, "bk")).model
        assert timed.d_hidden == pytest.approx(ours.d_hidden, rel=0.02)
        assert timed.model_copy(update={"d_hidden": ours.d_hidden}) == ours


def test_no_trial_of_a_comparison_is_ended_early() -> None:
    assert choose(None, SWEEP) == "none"
    with pytest.raises(ConfigError, match="leave --scheduler out"):
        choose("asha", SWEEP)
