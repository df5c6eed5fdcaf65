"""Sweeps that are killed lose no trial, double none, and end as if undisturbed."""

from pathlib import Path

import pytest
from storm import CASES, LOCAL, ON_RAY, Case, die_before_changes, storm
from victims import DRIVER, WORKER

pytestmark = pytest.mark.slow

SHORT = (
    Case("local", ["small", "--trials", "3", "--seeds", "2"], LOCAL, 6, 2, [DRIVER], seeds=2),
    Case("on Ray", ["small", "--trials", "3"], ON_RAY, 3, 2, [WORKER]),
)


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_a_sweep_survives_kills_at_random_moments(case: Case, tmp_path: Path) -> None:
    toll = storm(case, tmp_path, seed=0)
    assert toll.kills.total() == case.n_kills, toll
    assert toll.survived, toll


def test_a_sweep_survives_a_kill_before_a_change_to_the_disk(tmp_path: Path) -> None:
    toll = die_before_changes(tmp_path, stride=67)
    assert toll.kills[DRIVER] >= 4
    assert toll.survived, toll


def test_the_long_form_kills_often_enough() -> None:
    assert sum(case.n_kills for case in CASES) >= 30
