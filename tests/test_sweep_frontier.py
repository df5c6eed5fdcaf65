"""``bkray sweep act --frontier``: trained, swept from the checkpoints, shown, and resumed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = (
    *("model.d_model=16", "model.n_seq=32", "model.mixer=linear_recurrence", "train.steps=8"),
    *("train.batch_size=4", "train.eval_every=4", "train.eval_windows=4"),
)


def say(folder: Path, *words: str, status: int = 0) -> str:
    """Call bkray in a folder; return what it printed."""
    ended = subprocess.run(
        [sys.executable, "-m", "bkray.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_a_sweep_ends_with_a_verdict_when_all_its_trials_have(tmp_path: Path, text: Path) -> None:
    words = ("sweep", "act", "--frontier", "--preset", "smoke", "--trials", "1", "--local")
    words = (*words, "--out", "s", *TINY, f"data.corpus={text}")
    file = tmp_path / "s" / "frontier.json"
    stopped = json.loads(say(tmp_path, *words, "--time-budget", "0.001", "--json", status=4))
    assert "frontier" not in stopped
    assert not file.exists()
    told = say(tmp_path, "resume", "s", "--time-budget", "1h")
    for said in (
        "model.act_threshold swept from 1 checkpoints",
        "act_lambda=0.01 seed=0: trained at 0.9, largest gap ",
        "trained by tested, act_lambda=0.01 seeds 1: loss in nats @ layers",
        "tested at 0.5     tested at 0.9    tested at 0.99",
        "against one trained at 0.5, with as many layers: ",
        "verdict: ",
    ):
        assert said in told, said
    found = json.loads(file.read_text())
    assert f"verdict: {found['verdict']}" in say(tmp_path, "show", "s")
    again = json.loads(say(tmp_path, "resume", "s", "--json"))
    assert again["frontier"] == found
