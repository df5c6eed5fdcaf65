"""The ladder sweep as a value: its arms, and what follows from what became of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bkray.cluster.ledger import Ledger
from bkray.cluster.schedulers import choose
from bkray.cluster.search import Proposal
from bkray.cluster.tuner import SweepOptions, planned, resolve
from bkray.errors import ConfigError
from bkray.rungs import rungs
from sweeps.ladder import SWEEP

Fate = Callable[[Proposal], tuple[str, float]]
"""Outcome and loss of a proposal."""


def played(fate: Fate, **overrides: Any) -> list[str]:
    """Return the names of the arms in their order, each answered as ``fate`` says."""
    return [one.arm for one in _played(fate, overrides)]


def _played(fate: Fate, overrides: dict[str, Any]) -> Iterator[Proposal]:
    options = SweepOptions(out=Path("none"), preset="small", overrides=overrides)
    ledger = Ledger(None, resolve(SWEEP, options))
    try:
        while (proposal := ledger.ask()) is not None:
            outcome, loss = fate(proposal)
            ledger.tell(proposal, [loss], outcome)
            yield proposal
    finally:
        ledger.close()


def well(proposal: Proposal) -> tuple[str, float]:
    return "ok", 2.0


def up_to(longest: int) -> Fate:
    return lambda p: ("ok" if p.config.model.n_seq <= longest else "diverged", 2.0)


def test_every_length_takes_equal_tokens_and_scores_the_same() -> None:
    options = SweepOptions(out=Path("none"), preset="small")
    configs = [proposal.config for proposal in planned(SWEEP, options)]
    lengths = [config.model.n_seq for config in configs]
    assert lengths == [128, 512, 2048, 8192, 32768, 131072]
    assert {config.ladder.rungs for config in configs} == {(n,) for n in lengths}
    assert {rung.tokens_per_step for config in configs for rung in rungs(config)} == {131072}
    assert {c.train.eval_windows * c.model.n_seq for c in configs} == {131072}
    assert {c.train.eval_stretch for c in configs} == {131072}
    held = [rungs(c)[0].rows * min(c.model.n_seq, c.train.chunk or 1 << 20) for c in configs]
    assert set(held) == {4096}


def test_no_length_is_pruned_for_the_loss_of_another() -> None:
    assert choose(None, SWEEP) == "none"


def test_one_model_climbs_all_lengths() -> None:
    options = SweepOptions(out=Path("none"), preset="small", overrides={"ladder.mode": "carry"})
    (climb,) = planned(SWEEP, options)
    assert climb.config.ladder.rungs == (128, 512, 2048, 8192, 32768, 131072)
    assert played(well, **{"ladder.mode": "carry"}) == ["carry"]


def test_a_ladder_without_a_fall_ends_where_it_ends() -> None:
    assert played(well, **{"ladder.lengths": "128,512,2048"}) == ["seq-128", "seq-512", "seq-2048"]


@pytest.mark.parametrize(
    ("longest", "looked_at"),
    [(128, ["seq-512", "seq-256"]), (700, ["seq-512"]), (1024, ["seq-512", "seq-1024"])],
)
def test_the_longest_stable_length_is_closed_in_on(longest: int, looked_at: list[str]) -> None:
    seen = played(up_to(longest), **{"ladder.lengths": "128,4096"})
    assert seen[:2] == ["seq-128", "seq-4096"]
    first = ["seq-512"] if "seq-512" in seen else []
    assert first == ["seq-512"]
    stable = max(int(name[4:]) for name in seen if int(name[4:]) <= longest)
    diverged = min(int(name[4:]) for name in seen if int(name[4:]) > longest)
    assert diverged <= 2 * stable
    assert seen[2 : 2 + len(looked_at)] == looked_at


@pytest.mark.parametrize("longest", [40, 100, 300, 5000, 9000])
def test_lengths_that_divide_nothing_are_closed_in_on_too(longest: int) -> None:
    seen = [int(name[4:]) for name in played(up_to(longest), **{"ladder.lengths": "37,9973"})]
    stable = max(n for n in seen if n <= longest)
    diverged = min(n for n in seen if n > longest)
    assert diverged <= 2 * stable + 1
    assert len(seen) == len(set(seen)) <= 6


def test_any_lengths_score_the_same_stretches() -> None:
    overrides = {"ladder.lengths": "100,700,1000", "train.eval_windows": 3}
    options = SweepOptions(out=Path("none"), preset="small", overrides=overrides)
    configs = [proposal.config for proposal in planned(SWEEP, options)]
    assert {config.train.eval_stretch for config in configs} == {1000}
    assert [config.train.eval_windows for config in configs] == [30, 6, 3]
    tokens = [rungs(config)[0].tokens_per_step for config in configs]
    assert tokens == [1000, 700, 1000]


PAIRED = {"train.monitor": "birman_schwinger", "ladder.monitor": "both"}


def test_every_length_runs_without_the_monitor_and_with_it() -> None:
    overrides = {"ladder.lengths": "128,512", "train.precision_upgrade": 50.0, **PAIRED}
    options = SweepOptions(out=Path("none"), preset="small", overrides=overrides)
    found = [(p.arm, p.config) for p in planned(SWEEP, options)]
    names = ["seq-128", "seq-128-monitored", "seq-512", "seq-512-monitored"]
    assert [arm for arm, _ in found] == names
    for without, monitored in (found[:2], found[2:]):
        ours, theirs = monitored[1].model_dump(), without[1].model_dump()
        assert (theirs["train"].pop("monitor"), ours["train"].pop("monitor")) == (
            *("off", "birman_schwinger"),
        )
        assert theirs["train"].pop("precision_upgrade") is None
        assert ours["train"].pop("precision_upgrade") == 50.0
        del ours["arm"], theirs["arm"]
        assert ours == theirs
    assert played(well, **PAIRED, **{"ladder.mode": "carry"}) == ["carry", "carry-monitored"]


def test_what_runs_with_the_monitor_beside_decides_nothing() -> None:
    def fate(p: Proposal) -> tuple[str, float]:
        best = 0.005 if p.config.train.monitor == "off" else 0.015
        lost = p.config.model.n_seq == 4096 and p.config.train.monitor == "off"
        return "diverged" if lost else "ok", abs(p.config.optimizer.lr - best)

    asked = {"ladder.lengths": "128,4096", "ladder.lr_rule": "transfer", "optimizer.lr": 5e-3}
    seen = played(fate, **asked, **PAIRED)
    alone = [name for name in seen if not name.endswith("-monitored")]
    assert [f"{name}-monitored" for name in alone] == [n for n in seen if n not in alone]
    assert alone == played(fate, **asked)
    assert "seq-512-lr-0.005" in alone


def test_nothing_is_looked_for_below_a_shortest_length_that_diverges() -> None:
    assert played(up_to(0), **{"ladder.lengths": "128,512"}) == ["seq-128", "seq-512"]


def test_the_rate_that_is_best_at_the_shortest_is_taken_over_and_tested_at_the_longest() -> None:
    def fate(p: Proposal) -> tuple[str, float]:
        return "ok", abs(p.config.optimizer.lr - 0.015)

    seen = played(
        fate, **{"ladder.lengths": "128,512", "ladder.lr_rule": "transfer", "optimizer.lr": 5e-3}
    )
    assert seen == [
        "seq-128-lr-0.005",
        "seq-128-lr-0.0017",
        "seq-128-lr-0.015",
        "seq-512-lr-0.015",
        "seq-512-lr-0.005",
        "seq-512-lr-0.045",
    ]


def test_a_rate_that_diverges_is_not_taken_over() -> None:
    def fate(p: Proposal) -> tuple[str, float]:
        return (
            ("diverged", 0.0)
            if p.config.optimizer.lr > 0.01
            else ("ok", 1.0 / p.config.optimizer.lr)
        )

    seen = played(fate, **{"ladder.lengths": "128,512", "ladder.lr_rule": "transfer"})
    assert seen[3] == "seq-512-lr-0.005"
    everywhere = played(up_to(0), **{"ladder.lengths": "128,512", "ladder.lr_rule": "transfer"})
    assert len(everywhere) == 3


def test_a_search_tries_every_rate_everywhere() -> None:
    seen = played(well, **{"ladder.lengths": "128,512", "ladder.lr_rule": "search"})
    assert len(seen) == len(set(seen)) == 6


def test_a_search_closes_in_only_where_every_rate_diverges() -> None:
    def fate(p: Proposal) -> tuple[str, float]:
        lr, n_seq = p.config.optimizer.lr, p.config.model.n_seq
        fell = n_seq >= 2048 or (n_seq > 128 and lr > 0.01)
        return "diverged" if fell else "ok", -lr

    asked = {"ladder.lengths": "128,512,2048", "ladder.lr_rule": "search", "optimizer.lr": 5e-3}
    seen = played(fate, **asked)
    assert len(seen) == len(set(seen)) == 12
    rates = ("0.005", "0.0017", "0.015")
    assert seen[9:] == [f"seq-1024-lr-{lr}" for lr in rates]  # not 256, which one rate fell before


@pytest.mark.parametrize("fell", [512, 2048])
def test_the_transfer_is_tested_at_the_longest_length_below_a_fall(fell: int) -> None:
    def fate(p: Proposal) -> tuple[str, float]:
        lost = p.config.model.n_seq == fell
        return "diverged" if lost else "ok", abs(p.config.optimizer.lr - 0.005)

    asked = {"ladder.lengths": "256,512,2048", "ladder.lr_rule": "transfer", "optimizer.lr": 5e-3}
    seen = played(fate, **asked)
    assert seen[3:5] == ["seq-512-lr-0.005", "seq-2048-lr-0.005"]
    tested = [name for name in seen[3:] if not name.endswith("-0.005")]
    # below 512 there is only the shortest, where the rate comes from
    wanted = [] if fell == 512 else ["seq-1024-lr-0.0017", "seq-1024-lr-0.015"]
    assert tested == wanted


def test_the_full_preset_climbs_too_and_a_rule_to_search_by_is_refused() -> None:
    carry = {"ladder.mode": "carry"}
    (climb,) = planned(SWEEP, SweepOptions(out=Path("none"), preset="full", overrides=carry))
    assert climb.config.ladder.lr_rule == "given"
    asked = {**carry, "ladder.lr_rule": "search"}
    with pytest.raises(ConfigError, match=r"lr_rule=search does nothing with ladder\.mode"):
        planned(SWEEP, SweepOptions(out=Path("none"), preset="full", overrides=asked))


@pytest.mark.parametrize(
    "model",
    [
        {"model.mixer": "attention"},
        {"model.dropout": 0.1},
        {"model.multiscale": True, "model.n_layers": 3},
    ],
    ids=str,
)
def test_a_model_of_whole_rows_takes_them_whole(model: dict[str, Any]) -> None:
    def options(**more: Any) -> SweepOptions:
        overrides = {"ladder.lengths": "128,8192", **model, **more}
        return SweepOptions(out=Path("none"), preset="small", overrides=overrides)

    assert {p.config.train.chunk for p in planned(SWEEP, options())} == {None}
    with pytest.raises(ConfigError, match=r"train\.chunk=64 needs"):
        planned(SWEEP, options(**{"train.chunk": 64}))


def test_lengths_no_longer_than_a_chunk_are_not_cut_into_any() -> None:
    options = SweepOptions(
        out=Path("none"), preset="small", overrides={"ladder.lengths": "128,8192"}
    )
    short, long = planned(SWEEP, options)
    assert (short.config.train.chunk, long.config.train.chunk) == (None, 4096)


def test_a_ladder_without_lengths_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"give ladder\.lengths"):
        played(well, **{"ladder.lengths": None})
