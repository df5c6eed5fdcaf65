"""Every example runs as its first lines say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def say(*words: str, runs: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words],
        cwd=runs,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_trial_runs_from_python(tmp_path: Path) -> None:
    ended = say(str(ROOT / "examples" / "a_trial.py"), runs=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "step 40:" in ended.stdout
    assert "ok:" in ended.stdout


@pytest.mark.slow
def test_the_act_demo_measures_thresholds_lambdas_and_the_standard_model(tmp_path: Path) -> None:
    ended = say(str(ROOT / "examples" / "act_demo.py"), "--quick", runs=tmp_path)
    assert ended.returncode == 0, ended.stderr
    thresholds, lambdas, models = ended.stdout.strip().split("\n\n")
    layers = [float(line.split()[1]) for line in thresholds.splitlines()[2:]]
    assert layers == [2, 3, 4, 4, 4, 4], "p starts at 1/4"
    ponder = [float(line.split()[2]) for line in lambdas.splitlines()[2:]]
    assert ponder == sorted(ponder, reverse=True)
    standard, act = (int(line.split()[1].replace(",", "")) for line in models.splitlines()[2:])
    halting_units = 3 * (64 * 32 + 32 + 32 + 1)
    assert act == standard + halting_units


@pytest.mark.slow
def test_the_length_demo_compares_lengths_with_none(tmp_path: Path) -> None:
    ended = say(str(ROOT / "examples" / "learned_length_demo.py"), "--quick", runs=tmp_path)
    assert ended.returncode == 0, ended.stderr
    table = [line.split() for line in ended.stdout.strip().splitlines()[-3:]]
    assert [row[0] for row in table] == ["patterns", "walks", "both"]
    for _, plain, whole, cut, length, estimated, measured in table:
        assert all(1 < float(perplexity) < 100 for perplexity in (plain, whole, cut))
        assert 16 <= float(length) <= 128
        assert abs(float(estimated) - 128 / float(length)) < 0.02 * float(estimated)
        assert float(measured) > 0


def test_an_own_model_trains_by_its_dotted_path(tmp_path: Path) -> None:
    words = ["train", "model=examples.own_model:build", "options.width=24", "n_seq=32"]
    sizes = ["train.steps=12", "train.eval_every=6", "train.batch_size=4", "--json"]
    ended = say("-m", "bkray.cli", *words, *sizes, runs=tmp_path)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["outcome"] == "ok"
    assert said["summary"]["speedup_measured"] is None  # there is no dense twin to compare with
    config = json.loads((tmp_path / said["folder"] / "config.json").read_text())["config"]
    assert config["model.options.width"] == 24


@pytest.mark.parametrize("carrier", [["--local"], []], ids=["plain", "ray"])
def test_an_own_sweep_runs_from_its_file(tmp_path: Path, carrier: list[str]) -> None:
    sweep = str(ROOT / "examples" / "own_sweep.py")
    words = ["sweep", sweep, "--preset", "smoke", "--trials", "2", "train.steps=10", "--json"]
    ended = say("-m", "bkray.cli", *words, *carrier, runs=tmp_path)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert sum(said["outcomes"].values()) == 2
    assert len(said["pareto_front"]) == 1
