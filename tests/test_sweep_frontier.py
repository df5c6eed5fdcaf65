"""``bkray sweep act --frontier``: trained, swept from the checkpoints, shown, and resumed."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bkray.cli.frontier import sweep_lines
from bkray.train.frontier import StopPoint
from bkray.train.verdict import Cell, Cost, Matrix, SweptModel, judge

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


def interrupted(folder: Path, *words: str) -> tuple[str, str]:
    """Call bkray, interrupt it once checkpoints are swept; return what it printed where."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bkray.cli", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    out = ""
    for line in process.stdout:
        out += line
        if line.startswith("sweeping "):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 130, out + rest + errors
    return out, errors


@pytest.mark.slow
def test_a_sweep_ends_with_a_verdict_when_all_its_trials_have(tmp_path: Path, text: Path) -> None:
    words = ("sweep", "act", "--frontier", "--preset", "smoke", "--trials", "1", "--local")
    words = (*words, "--out", "s", *TINY, f"data.corpus={text}")
    file = tmp_path / "s" / "frontier.json"
    stopped = json.loads(say(tmp_path, *words, "--time-budget", "0.001", "--json", status=4))
    assert "frontier" not in stopped
    assert not file.exists()
    file.write_text('{"verdict": "of before"}')
    shown, errors = interrupted(tmp_path, "resume", "s", "--time-budget", "1h")
    leaderboard, _, swept = shown.partition("\nsweeping ")
    assert swept == "3 checkpoints\n"
    assert "dense-2" in leaderboard.partition("\nLeaderboard\n")[2], "all is shown before"
    assert errors.splitlines()[-1] == f"go on with: bkray resume {tmp_path / 's'}"
    assert not file.exists(), "it was of fewer trials"
    assert "verdict" not in say(tmp_path, "show", "s")
    told = say(tmp_path, "resume", "s")
    for said in (
        "sweeping 3 checkpoints",
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
    refused = ("resume", "s", "--scheduler", "asha")
    say(tmp_path, *refused, status=2)
    assert json.loads(file.read_text()) == found, "nothing went on"


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_trials_that_a_scheduler_ends_early_are_refused(
    say_here: Any, tmp_path: Path, more: tuple[str, ...]
) -> None:
    ended = say_here("sweep", "act", "--frontier", "--scheduler", "asha", "--local", *more)
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: --frontier sweeps models that were trained to their end, and scheduler=asha ends "
        "trials early: use --scheduler none\n"
    )
    assert list(tmp_path.rglob("trials")) == []


MINE = """
from dataclasses import replace
from sweeps.act import SWEEP as ACT
SWEEP = replace(ACT, frontier=replace(ACT.frontier, at_inference="model.mixer"))
"""


def test_a_knob_that_cannot_be_swept_is_refused_before_training(
    say_here: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    ended = say_here("sweep", "mine.py", "--frontier", "--local")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "at_inference must be one of model.act_threshold, model.exit_thresh" in ended.stderr


def test_what_was_found_is_told_with_the_front() -> None:
    """The second searched knob is no number."""
    path, rule = "model.act_lambda", "model.mixer"
    points = (StopPoint(0.25, 1.0, 2.5), StopPoint(0.9, 2.0, 2.25))
    models = tuple(
        SweptModel("0a1b", seed, {path: 0.01, rule: "bk"}, 0.9, 0.004, points) for seed in (0, 1)
    )
    cells = (Cell(0.9, 0.9, 2.0, 2.25, 2), Cell(0.5, 0.9, 1.5, 2.5, 2))
    matrix = Matrix(models[0].knobs, cells, (Cost(0.5, 0.0125, 2),))
    found = judge("model.act_threshold", models, matrix)
    assert list(sweep_lines(found)) == [
        "model.act_threshold swept from 2 checkpoints; the curve of each: frontier.json",
        *(
            f"  act_lambda=0.01 mixer=bk seed={seed}: trained at 0.9, largest gap 0.0040 nats, "
            "allowed"
            for seed in (0, 1)
        ),
        "trained by tested, act_lambda=0.01 mixer=bk seeds 2: loss in nats @ layers",
        "    trained     tested at 0.9",
        "        0.5    2.5000 @ 1.500",
        "        0.9    2.2500 @ 2.000",
        "  against one trained at 0.5, with as many layers: +0.0125 nats",
        "best of them by layers and loss, true evaluations, means over seeds",
        "  layers 1.000  loss 2.5000 nats  act_lambda=0.01 mixer=bk act_threshold=0.25 n_seeds=2",
        "  layers 2.000  loss 2.2500 nats  act_lambda=0.01 mixer=bk act_threshold=0.9 n_seeds=2",
        f"verdict: {found.verdict}",
    ]
    unknown = judge("model.act_threshold", models, replace(matrix, costs=(Cost(0.5, None, 2),)))
    told = "\n".join(sweep_lines(unknown))
    assert "one trained at 0.5, with as many layers: unknown, it never runs as many\n" in told
    assert "best of them" not in told
