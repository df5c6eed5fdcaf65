"""The checks of the chaos suite see what they are there to see."""

import json
import shutil
from pathlib import Path

import pytest
from intact import Flaws, done_trials, flaws
from standin import FAILS, carry, point, sweep_of

N_TRIALS = 3


@pytest.fixture
def sweeps(tmp_path: Path) -> tuple[Path, Path]:
    """Return the folders of two runs of one sweep."""
    folders = tmp_path / "out", tmp_path / "whole"
    for folder in folders:
        carry(sweep_of(n_trials=N_TRIALS), folder, local=True)
    return folders


def kinds(out: Path, **given: object) -> list[str]:
    given = {"n_planned": N_TRIALS, "done": {}} | given
    found: Flaws = flaws(out, **given)  # type: ignore[arg-type]
    return [kind for kind, said in found._asdict().items() if said]


def a_trial(out: Path) -> Path:
    return sorted(out.glob("trials/*"))[0]


def test_two_undisturbed_runs_have_no_flaw(sweeps: tuple[Path, Path]) -> None:
    out, whole = sweeps
    assert kinds(out, whole=whole, done=done_trials(out)) == []


def test_a_trial_without_outcome_or_with_a_gap_is_lost(sweeps: tuple[Path, Path]) -> None:
    out, whole = sweeps
    (a_trial(out) / "outcome.json").unlink()
    assert kinds(out) == ["lost"]
    sorted(a_trial(whole).glob("events/*"))[1].unlink()
    assert kinds(whole) == ["lost"]
    assert "lost" in kinds(whole, n_planned=N_TRIALS + 1)


def test_a_trial_that_failed_is_lost(tmp_path: Path) -> None:
    carry(sweep_of(point(FAILS), n_trials=N_TRIALS), tmp_path, local=True)
    assert "lost" in kinds(tmp_path)


def test_a_trial_twice_is_seen(sweeps: tuple[Path, Path]) -> None:
    out, _ = sweeps
    shutil.copytree(a_trial(out), out / "trials" / "again")
    assert "doubled" in kinds(out)


def test_an_attempt_more_is_seen(sweeps: tuple[Path, Path]) -> None:
    out, _ = sweeps
    done = done_trials(out)
    outcome = a_trial(out) / "outcome.json"
    outcome.write_text(outcome.read_text())
    assert kinds(out, done=done) == ["rerun"]


def test_another_number_is_seen(sweeps: tuple[Path, Path]) -> None:
    out, whole = sweeps
    outcome = a_trial(out) / "outcome.json"
    said = json.loads(outcome.read_text())
    said["summary"]["best_val_loss_nats"] += 1e-6
    outcome.write_text(json.dumps(said))
    assert kinds(out, whole=whole) == ["unequal"]


def test_a_lock_is_seen(sweeps: tuple[Path, Path]) -> None:
    out, _ = sweeps
    (a_trial(out) / ".lock").touch()
    assert kinds(out) == ["left"]
