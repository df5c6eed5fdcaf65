"""The sweep of the BK model's parts as a value: which arms there are, and in what they differ."""

from dataclasses import replace
from pathlib import Path

import pytest
from standin import LOSS, carry

from bkray.cluster.schedulers import choose
from bkray.cluster.search import Proposal
from bkray.cluster.tuner import SweepOptions, planned
from bkray.errors import ConfigError
from bkray.overrides import Overrides
from bkray.report.parts import columns
from bkray.stats import sign_flip_p
from sweeps.parts import PARTS, SET_BY_ARMS, SWEEP

CHANGES = {
    "base": {},
    "4-heads": {"n_heads": 4},
    "no-values": {"n_values": 0},
    "zero-energies": {"energies": "zero"},
    "low-rank": {"semiseparable_rank": 16},
    "experts": {"n_experts": 4},
    "experts-scattering": {"n_experts": 4, "router": "scattering"},
}
ROUTING = {"router", "top_k", "balance_weight", "router_head", "router_resonance"}


def plan(preset: str = "small", overrides: Overrides | None = None) -> list[Proposal]:
    options = SweepOptions(out=Path("none"), preset=preset, overrides=overrides or {})
    return planned(SWEEP, options)


@pytest.mark.parametrize("preset", SWEEP.presets)
def test_arms_differ_from_the_base_in_their_part_alone(preset: str) -> None:
    proposals = plan(preset)
    assert [one.arm for one in proposals] == list(CHANGES)
    base = proposals[0].config
    for one in proposals:
        assert (one.config.data, one.config.optimizer, one.config.train) == (
            *(base.data, base.optimizer, base.train),
        )
        ours, theirs = one.config.model.model_dump(), base.model.model_dump()
        differing = {name: ours[name] for name in ours if ours[name] != theirs[name]}
        wanted = CHANGES[one.arm]
        assert wanted.items() <= differing.items()
        assert set(differing) - set(wanted) <= (ROUTING if "experts" in one.arm else set())


@pytest.mark.parametrize("path", SET_BY_ARMS)
def test_a_part_cannot_be_pinned(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"parts sets {path} itself"):
        plan(overrides={path: 1})


@pytest.mark.parametrize("overrides", [{"model.mixer": "attention"}, {"model": "mine:build"}])
def test_another_model_has_no_such_parts(overrides: Overrides) -> None:
    with pytest.raises(ConfigError, match="is of the BK model"):
        plan(overrides={**overrides})


def test_eight_seeds_can_decide() -> None:
    assert least_p(8) * len(PARTS) <= 0.05 < least_p(7) * len(PARTS)


def least_p(n_seeds: int) -> float:
    return sign_flip_p([1.0] * n_seeds)


def test_no_arm_is_pruned_for_the_loss_of_another() -> None:
    assert choose(None, SWEEP) == "none"


def test_a_sweep_of_parts_runs_to_its_end(tmp_path: Path) -> None:
    ended = carry(
        replace(SWEEP, objectives=(LOSS,)), tmp_path, preset="smoke", local=True, seeds=2
    )
    assert (ended.outcomes, ended.n_planned) == ({"ok": 14}, 14)


def test_every_arm_is_held_against_its_reference() -> None:
    row = {"outcome": "ok", "final_val_loss_nats": 2.0, "n_params": 1, "seed": 0}
    found = columns([{**row, "arm": arm} for arm in CHANGES])
    assert found["arm"] == list(CHANGES)[1:]
    assert found["against"] == [*["base"] * 5, "experts"]
