"""The command line as a user meets it: in processes of its own where more than words count."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from servers import free_port

from sweeps.act import SWEEP

SMOKE = [f"{path}={value}" for path, value in SWEEP.presets["smoke"].overrides.items()]

Say = Callable[..., subprocess.CompletedProcess[str]]

TINY = (
    "model.d_model=16",
    "model.n_seq=32",
    "train.steps=12",
    "train.batch_size=4",
    "train.eval_every=6",
    "train.eval_windows=4",
)
CLOCKS = {
    *("speedup_measured", "tokens_per_second", "train_seconds", "peak_memory_mib"),
    "speedup_relative_to_dense",
}
"""The columns of trials.parquet that are times, speeds and memory."""


@pytest.fixture
def say(tmp_path: Path) -> Say:
    """Call bkray in a folder of its own."""

    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bkray.cli", *words],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "model.act_lamda=0.1"], "did you mean model.act_lambda"),
        (["sweep", "act", "--address", "nonsense"], "address=nonsense"),
    ],
    ids=["before torch", "of Ray"],
)
def test_a_mistake_is_one_clear_message_and_status_2(
    say: Say, words: list[str], said: str
) -> None:
    ended = say(*words)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "depth=act", "act_threshold=1.5"], "0 < act_threshold <= 1), got 1.5"),
        (["train", "n_experts=2", "top_k=4"], "between 1 and model.n_experts=2, got 4"),
        (["train", "data.corpus=nowhere.txt"], "nowhere.txt"),
        (["train", "n_seq=0"], "2 <= n_seq), got 0"),
        (["train", "position=rope"], "does nothing in a model with mixer=bk"),
        (
            ["train", "ladder.lengths=64,128", "ladder.mode=independent"],
            "ladder.mode=independent does nothing in one trial",
        ),
        (["train", "act_lambda=0.1"], "set model.depth=act"),
        (["train", "steps"], "path=value"),
        (["train", "--out", "a_file"], "is a file"),
        (["sweep", "act", "--out", "a_file", "--local"], "is a file"),
        (["sweep", "act", "--preset", "huge"], "smoke, small, full"),
        (["sweep", "act", "--sampler", "magic"], "qmc"),
        (["sweep", "act", "--scheduler", "magic"], "asha"),
        (["sweep", "act", "--time-budget", "soon"], "30m"),
        (["sweep", "act", "--concurrency", "1000"], "CPU cores"),
        (["sweep", "act", "--workers", "64", "batch_size=64"], "CPU cores"),
        (["sweep", "act", "--workers", "2", "batch_size=3"], "a multiple of 2"),
        (["sweep", "act", "--workers", "2", "--local"], "leave --workers"),
        (["train", "--workers", "2", "batch_size=3"], "a multiple of 2"),
        (["sweep", "act", "--gpus-per-worker", "-1"], "gpus-per-worker must be 0 or more, got -1"),
        (["sweep", "act", "--gpus-per-worker", "1", "device=cpu"], "train.device=cpu"),
        (["sweep", "act", "--gpus-per-worker", "some"], "a number or auto"),
        (["sweep", "act", "--gpus-per-worker", "auto", "--workers", "2"], "trials of one worker"),
        (["sweep", "act", "--max-gpu-hours", "1"], "no trial reserves a GPU"),
        (["sweep", "act", "--accelerator-type", "T4"], "no trial reserves a GPU"),
        (["sweep", "act", "--memory-per-worker", "lots"], "512M or 8G"),
        (["sweep", "act", "--out", "s3://bucket"], "plain place"),
        (["sweep", "act", "--out", "http://host/x"], "s3://"),
        (["sweep", "act", "--local", "--address", "auto"], "leave --address out"),
        (["sweep", "act", "--seeds", "0"], "--seeds"),
        (["train", "--gpus-per-worker", "1"], "give --workers too"),
        (["ui", "--port", "99999"], "--port"),
        (["sweep", "act", "train.stepps=3"], "train.steps"),
        (["sweep", "atc"], "act"),
        (["sweep", "missing.py"], "missing.py"),
        (["show", "."], "sweep.json"),
        (["eval", "."], "config.json"),
        (["ui", "--runs", "nothing"], "run a sweep first"),
        (["train", "--nonsense"], "--nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_mistake_is_told_in_one_line_and_spares_what_is_there(
    say_here: Say, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "a_file").write_text("precious")
    ended = say_here(*words)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert (tmp_path / "a_file").read_text() == "precious"


def test_an_unreachable_tracking_server_is_one_message_and_status_2(say: Say) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    words = ("sweep", "act", "--preset", "smoke", "--local", *TINY)
    ended = say(*words, MLFLOW_TRACKING_URI=address)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert address in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_trial_is_trained_shown_and_scored(say: Say, say_here: Say, text: Path) -> None:
    words = ("train", *TINY, f"data.corpus={text}", "--out", "trial", "--json")
    trained = say(*words)
    assert trained.returncode == 0, trained.stderr
    first = json.loads(trained.stdout)
    again = say_here(*words)
    assert json.loads(again.stdout) == first, "a finished trial is not run again"
    other = say_here(*words, "train.steps=13")
    assert other.returncode == 2, "another trial must not overwrite this one"
    scored = say_here("eval", "trial", "--split", "test", "--json")
    assert scored.returncode == 0, scored.stderr
    score = json.loads(scored.stdout)
    assert score["step"] == 12
    assert 1.0 < score["loss_nats"] < 6.0
    assert score["loss_nats"] != first["summary"]["best_val_loss_nats"]


def test_two_sweeps_of_one_seed_agree_in_all_but_clocks(
    say: Say, say_here: Say, text: Path, tmp_path: Path
) -> None:
    tables = []
    for out, carrier in (("one", ["--local"]), ("two", ["--concurrency", "1"])):
        words = ("sweep", "act", "--preset", "smoke", "--out", out, *carrier, *TINY)
        ended = say(*words, f"data.corpus={text}")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Pareto front" in ended.stdout
        tables.append(pq.read_table(tmp_path / out / "trials.parquet"))
    assert tables[0].schema == tables[1].schema
    assert tables[0].num_rows == 6
    for name in tables[0].column_names:
        same = tables[0][name].equals(tables[1][name])
        assert same or name in CLOCKS, name
    shown = say_here("show", "one", "--json")
    trials = json.loads(shown.stdout)["trials"]
    assert {trial["outcome"] for trial in trials} == {"ok"}
    assert {trial["arm"] for trial in trials} == {"", "dense-1", "dense-2"}
    searched = [trial for trial in trials if not trial["arm"]]
    assert {0.99, 0.95} < {trial["param/model.act_threshold"] for trial in searched}


@pytest.mark.slow
def test_two_workers_of_ray_train_train_as_this_process_does(
    say: Say, say_here: Say, text: Path
) -> None:
    words = ("train", "depth=dense", *SMOKE, f"data.corpus={text}", "--json")
    ended = say(*words, "--workers", "2", "--out", "team")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    alone = say_here(*words, "--out", "alone")
    team, own = (json.loads(one.stdout)["summary"] for one in (ended, alone))
    assert team["final_val_loss_nats"] == pytest.approx(own["final_val_loss_nats"], abs=1e-4)


@pytest.mark.slow
def test_a_sweep_of_two_seeds_shows_configurations(say_here: Say, text: Path) -> None:
    words = ("sweep", "act", "--preset", "smoke", "--trials", "1", "--seeds", "2", "--local")
    ended = say_here(*words, "--out", "two", *TINY, f"data.corpus={text}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith("6 trials (3 configurations x 2 seeds) into two")
    assert "6 done, 0 running, 6 in all" in ended.stdout
    assert "Means over 2 seeds." in ended.stdout
    shown = json.loads(say_here("show", "two", "--json").stdout)
    assert [(one["n"], one["seeds"]) for one in shown["configurations"]] == [(2, [0, 1])] * 3
    best = [one["trial_ids"] for one in shown["configurations"] if one["on_front"]]
    assert sorted(shown["pareto_front"]) == sorted(name for names in best for name in names)
    assert len(shown["trials"]) == 6


def test_a_dry_run_of_several_seeds_says_how_many_trials_that_is(say_here: Say) -> None:
    ended = say_here("sweep", "act", "--preset", "full", "--seeds", "3", "--dry-run")
    assert ended.stdout.splitlines()[-1].startswith("102 trials (34 configurations x 3 seeds)")


def test_a_time_budget_that_is_reached_is_status_4(say_here: Say) -> None:
    ended = say_here(
        *("sweep", "act", "--preset", "small", "--local", "--time-budget", "1s", *TINY),
        "train.steps=100000",
    )
    assert ended.returncode == 4, ended.stdout + ended.stderr


def test_a_dry_run_shows_the_arms_and_runs_nothing(say_here: Say, tmp_path: Path) -> None:
    ended = say_here("sweep", "act", "--preset", "full", "--dry-run", "--json")
    plan = json.loads(ended.stdout)
    assert [trial.get("arm") for trial in plan[:4]] == [f"dense-{d}" for d in (1, 2, 3, 4)]
    assert len(plan) == 4 + 30
    assert not (tmp_path / "runs").exists()


def test_help_names_every_verb_with_an_example(say: Say, say_here: Say) -> None:
    verbs = ["train", "sweep", "resume", "show", "report", "eval", "frontier"]
    verbs += ["why", "replay", "mlflow-sync", "ui"]
    shown = say("--help").stdout
    assert all(f" {verb} " in shown for verb in verbs)
    for verb in verbs:
        assert f"Example: bkray {verb}" in say_here(verb, "--help").stdout.replace("\n", " ")
