"""``bkray resume`` as a user meets it, each call a process of its own."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_cli import CLOCKS

from bkray.cli.sweep import _status
from bkray.cluster.options import SweepOptions
from bkray.cluster.tuner import SweepOutcome

Start = Callable[..., subprocess.Popen[str]]
Say = Callable[..., subprocess.CompletedProcess[str]]

TINY = ("model.d_model=16", "model.n_seq=32", "train.batch_size=4", "train.eval_windows=4")
LONG = (*TINY, "train.steps=120", "train.eval_every=20", "train.checkpoint_every=20")
KILLED = ("sweep", "act", "--preset", "smoke", "--trials", "2")
MINE = """
from bkray.sweep import Objective, Preset, Sweep

def space(trial):
    trial.suggest_float("optimizer.lr", 1e-4, {high}, log=True)
    return {{}}

SWEEP = Sweep(
    name="mine",
    space=space,
    objectives=(Objective(column="best_val_loss_nats", direction="minimize"),),
    presets={{"small": Preset(trials=2)}},
    base={{"train.steps": 40, "train.eval_every": 20}},
)
"""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start bkray in a folder of its own."""

    def begin(*words: str, cwd: Path = tmp_path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "bkray.cli", *words],
            cwd=cwd,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return begin


@contextmanager
def said(process: subprocess.Popen[str], words: str) -> Iterator[None]:
    """Run the block when a line of standard output has the words; the process may be gone then."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            break
    else:
        pytest.fail(f"never said {words!r}: {process.communicate()}")
    yield


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=300)
    return process.returncode, out, errors


def differences(one: Path, other: Path) -> set[str]:
    tables = [pq.read_table(folder / "trials.parquet") for folder in (one, other)]
    assert tables[0].schema == tables[1].schema
    names = tables[0].column_names
    return {name for name in names if not tables[0][name].equals(tables[1][name])}


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed sweep without Ray, which says the same as one on Ray."""
    folder = tmp_path_factory.mktemp("whole") / "whole"
    words = [*KILLED, "--local", *LONG, f"data.corpus={text}", "--out", str(folder)]
    command = [sys.executable, "-m", "bkray.cli", *words]
    subprocess.run(command, cwd=folder.parent, check=True, capture_output=True, timeout=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("carrier", [("--local",), ("--concurrency", "1")], ids=["local", "tune"])
def test_a_killed_sweep_is_resumed_and_equals_an_undisturbed_one(
    start: Start, say_here: Say, whole: Path, text: Path, tmp_path: Path, carrier: tuple[str, ...]
) -> None:
    words = (*KILLED, *carrier, *LONG, f"data.corpus={text}")
    killed = start(*words, "--out", "parts")
    with said(killed, "step 40/120"):
        os.killpg(killed.pid, signal.SIGKILL)
    ended(killed)
    used = say_here(*words, "--out", "parts")
    assert used.returncode == 2
    assert "bkray resume" in used.stderr
    status, out, errors = ended(start("resume", "parts"))
    assert (status, errors) == (0, "")
    assert "goes on from step" in out
    assert "4 done, 0 running, 4 in all" in out
    assert differences(whole, tmp_path / "parts") <= CLOCKS | {"attempt"}
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        statuses = Counter(status for (status,) in store.execute("select status from runs"))
    assert statuses == {"FINISHED": 5}, "a sweep of four trials, none left running"


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(start: Start, text: Path) -> None:
    words = ("sweep", "act", "--preset", "smoke", "--local", "--out", "s", *LONG)
    process = start(*words, f"data.corpus={text}")
    with said(process, "step 20/120"):
        process.send_signal(signal.SIGINT)
    status, _, errors = ended(process)
    assert status == 130
    assert errors.splitlines()[0] == "stopping; press again to quit at once"
    assert errors.splitlines()[-1].startswith("go on with: bkray resume ")


def test_a_users_own_sweep_is_found_again_and_must_be_the_same(
    start: Start, say_here: Say, text: Path, tmp_path: Path
) -> None:
    own, elsewhere = tmp_path / "mine.py", tmp_path / "elsewhere"
    elsewhere.mkdir()
    own.write_text(MINE.format(high="1e-2"))
    words = ("sweep", "mine.py", "--local", "--time-budget", "0.001", "--out", "s", *TINY)
    words += (f"data.corpus={text}",)
    status, _, errors = ended(start(*words))
    assert status == 4
    assert "go on with: bkray resume s" in errors
    resume = ("resume", str(tmp_path / "s"), "--json", "--time-budget", "10m")
    status, out, errors = ended(start(*resume, cwd=elsewhere))
    assert (status, errors) == (0, "")
    assert json.loads(out)["outcomes"] == {"ok": 2}
    assert not (elsewhere / "runs").exists()  # MLflow's store is the one of before
    own.write_text(MINE.format(high="1e-1"))
    changed = say_here(*resume)
    assert changed.returncode == 2
    was_is = "space optimizer.lr was float 0.0001..0.01 log, is float 0.0001..0.1 log"
    assert was_is in changed.stderr
    own.unlink()
    gone = say_here(*resume)
    assert gone.returncode == 2
    assert gone.stderr.count("\n") == 1
    assert "mine.py does not exist" in gone.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("resume", "nowhere"), "holds no sweep"),
        (("resume",), "DIR"),
        (("resume", ".", "--time-budget", "soon"), "holds no sweep"),
    ],
)
def test_a_mistake_is_one_message(say_here: Say, words: tuple[str, ...], says: str) -> None:
    told = say_here(*words)
    assert told.returncode == 2
    assert says in told.stderr
    assert told.stderr.count("\n") == 1


def test_two_sweeps_of_one_second_have_folders_of_their_own(start: Start, tmp_path: Path) -> None:
    words = ("sweep", "act", "--preset", "smoke", "--local", "--time-budget", "0.001", *TINY)
    time.sleep(1.0 - time.time() % 1.0)
    both = [start(*words), start(*words)]
    assert [ended(process)[0] for process in both] == [4, 4]
    folders = list((tmp_path / "runs" / "act").iterdir())
    assert len(folders) == 2
    assert all((folder / "sweep.json").exists() for folder in folders)


@pytest.mark.parametrize(
    ("storage", "runs", "says"),
    [
        ("", "runs", "bkray resume runs/t/x"),
        ("s3://bucket/x", "runs", "bkray resume s3://bucket/x"),
        ("s3://bucket/x", "other", "bkray resume s3://bucket/x --runs other"),
    ],
)
def test_a_sweep_at_a_uri_goes_on_from_there(
    capsys: pytest.CaptureFixture[str], storage: str, runs: str, says: str
) -> None:
    ended = SweepOutcome(
        folder=Path("runs/t/x"),
        outcomes={},
        n_planned=2,
        n_reused=0,
        interrupted=True,
        over_budget="",
        first_failure="",
    )
    options = SweepOptions(out=Path("runs/t/x"), preset="smoke", runs=Path(runs), storage=storage)
    assert _status(ended, options) == 130
    assert capsys.readouterr().err == f"go on with: {says}\n"
