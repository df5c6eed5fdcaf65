"""Sweeps of the stand-in on Ray Tune: the events of the plain carrier, and no deadlock."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import standin
from standin import DIES, DIVERGES, FAILS, OUT_OF_MEMORY, PARTS, carry, identify, point, sweep_of
from views import Remembering

from bkray.cluster.carriers import Job, Parts
from bkray.cluster.session import SLOT, session
from bkray.cluster.tune_carrier import CarriedTrial
from bkray.cluster.tuner import SweepOptions, run_sweep
from bkray.errors import ConfigError
from bkray.events import EvalDone, Event, TrialEnded
from bkray.overrides import Overrides
from bkray.sinks.parquet import ParquetSink
from bkray.sweep import Trial

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def test_bad_trials_do_not_hold_up_two_at_a_time(tmp_path: Path) -> None:
    view = Remembering()
    bad = [point(dropout) for dropout in (DIES, FAILS, OUT_OF_MEMORY, DIVERGES)]
    ended = carry(sweep_of(*bad, n_trials=8), tmp_path, view, concurrency=2)
    assert ended.outcomes == Counter(failed=2, oom=1, diverged=1, ok=4)
    died = [why for _, why in view.endings if why.startswith("the worker died: ActorDiedError")]
    assert len(died) == 1
    attempts = Counter(trial_id for trial_id, _ in view.trials)
    assert sorted(attempts.values()) == [1] * 5 + [2, 2, 3]
    for trial_id, sink in {name: sink for name, sink in view.trials}.items():
        outcome = json.loads((tmp_path / "trials" / trial_id / "outcome.json").read_text())
        last = sink.events[-1]
        assert isinstance(last, TrialEnded)
        assert outcome["outcome"] == last.outcome
        assert [event.step for event in sink.events] == sorted(e.step for e in sink.events)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "study.db",
        "sweep.json",
        "trials",
    ]


class DyingSink(ParquetSink):
    """Its process dies, once, between writing an outcome and telling it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._died = folder.parent.with_name("died")

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, TrialEnded) and not self._died.exists():
            self._died.touch()
            os._exit(1)


def test_a_trial_that_wrote_its_outcome_is_not_run_again(tmp_path: Path) -> None:
    parts = Parts(PARTS.run_trial, DyingSink)
    options = SweepOptions(out=tmp_path, preset="p", scheduler="none", concurrency=1)
    ended = run_sweep(sweep_of(n_trials=2), options, parts=parts, identify=identify)
    assert ended.outcomes == {"ok": 2}
    outcomes = [json.loads(p.read_text()) for p in tmp_path.glob("trials/*/outcome.json")]
    assert [outcome["attempt"] for outcome in outcomes] == [1, 1]


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_a_scheduler_ends_the_worse_trials_early(tmp_path: Path, scheduler: str) -> None:
    good_then_bad = [point(0.0, 10**-2.5 * 10 ** (i / 8)) for i in range(8)]
    view = Remembering()
    ended = carry(
        sweep_of(*good_then_bad, n_trials=8),
        tmp_path,
        view,
        concurrency=1,
        scheduler=scheduler,
    )
    outcomes = Counter(ended.outcomes)
    assert outcomes["pruned"] >= 1
    assert outcomes["pruned"] + outcomes["ok"] == 8
    assert view.endings[0] == ("ok", "")  # the best one
    for _, sink in view.trials:
        last = sink.events[-1]
        assert isinstance(last, TrialEnded)
        if last.outcome == "pruned":
            assert last.reason == f"{scheduler} at step {last.step}"
            assert last.step < 40
            # it ended at the evaluation that condemned it, and its loss is kept
            assert isinstance(sink.events[-2], EvalDone)
            assert last.summary["best_val_loss_nats"] == pytest.approx(sink.events[-2].loss_nats)


def test_a_trial_that_has_run_to_its_end_is_not_pruned_there(tmp_path: Path) -> None:
    # the bad ones lower the bar of the first rung, not that of the last one, at the last step
    points = [point(dropout) for dropout in (0.05, 0.45, 0.46, 0.47, 0.48, 0.15)]
    view = Remembering()
    base = {"train.steps": 30, "train.eval_every": 10}
    carry(
        sweep_of(*points, n_trials=6, base=base), tmp_path, view, concurrency=1, scheduler="asha"
    )
    assert [outcome for outcome, _ in view.endings] == ["ok", *["pruned"] * 4, "ok"]


def test_a_typo_in_the_space_ends_the_sweep_with_its_own_message(tmp_path: Path) -> None:
    def space(trial: Trial) -> Overrides:
        trial.suggest_float("model.dropout", 0.0, 0.5)
        return {"model.n_layer": 3}

    with pytest.raises(ConfigError, match=r"model\.n_layer.*model\.n_layers"):
        carry(sweep_of(n_trials=3, space=space), tmp_path)


def test_a_view_that_breaks_ends_the_sweep_with_its_own_error(tmp_path: Path) -> None:
    class Breaking(Remembering):
        def trial(self, trial_id: str) -> Any:
            if len(self.trials) == 1:
                raise OSError("no space left on the view")
            return super().trial(trial_id)

    with pytest.raises(OSError, match="no space left on the view"):
        carry(sweep_of(n_trials=4), tmp_path, Breaking(), concurrency=1)


def test_more_gpus_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes 64 of the resource 'GPU'"):
        carry(sweep_of(n_trials=1), tmp_path, gpus=64)


def test_more_slots_than_there_are_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="takes 64 of the resource 'slot'"),
        session(address=None, threads=1, needs={SLOT: 64}),
    ):
        pass


PROGRAM = """
import os, pathlib, signal, sys
sys.path.insert(0, {here!r})
import standin
from bkray.cluster.carriers import Job
from bkray.cluster.session import SLOT, session
from bkray.cluster.tune_carrier import CarriedTrial
from bkray.cluster.tuner import SweepOptions, run_sweep
from bkray.events import EvalDone
from standin import DIES, FAILS, point, sweep_of
from views import Remembering

class Impatient(Remembering):
    said = False
    def trial(self, trial_id):
        super().trial(trial_id)
        return self
    def __call__(self, event):
        self.trials[-1][1](event)
        if isinstance(event, EvalDone) and not self.said:
            self.said = True
            os.killpg(0, signal.SIGINT)

def run(name, sweep, *views):
    options = SweepOptions(
        out=pathlib.Path({out!r}) / name, preset="p", concurrency=2, scheduler="none"
    )
    ended = run_sweep(sweep, options, views, parts=standin.PARTS, identify=standin.identify)
    print(name, ended.interrupted, sorted(ended.outcomes.items()))

with session(address=None, threads=1):
    run("bad", sweep_of(point(DIES), point(FAILS), n_trials=4))
    endless = sweep_of(n_trials=9, base={{"train.steps": 10**9, "train.eval_every": 10}})
    run("endless", endless, Impatient())
"""


def test_ray_says_nothing_and_ctrl_c_lets_trials_end_by_themselves(tmp_path: Path) -> None:
    program = PROGRAM.format(here=str(Path(__file__).parents[1]), out=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,  # Ctrl-C reaches the whole group, as on a terminal
    )
    assert done.stderr == "stopping; press again to quit at once\n"
    first, second = done.stdout.splitlines()
    assert first == "bad False [('failed', 2), ('ok', 2)]"
    assert second in (f"endless True [('interrupted', {n})]" for n in (1, 2))
    assert done.returncode == 0


def carried_trial(folder: Path) -> CarriedTrial:
    job = Job(
        number=0,
        trial_id="one",
        data_hash="data",
        sweep="t",
        overrides={"train.steps": 40, "train.eval_every": 10},
        folder=folder,
        sweep_folder=folder.parent,
        deadline=None,
    )
    folder.mkdir()
    trial: CarriedTrial = CarriedTrial.__new__(
        CarriedTrial
    )  # Tune's own set-up is not wanted here
    trial.setup({"job": job, "cwd": str(Path.cwd())}, standin.PARTS, None, "")
    return trial


def test_an_actor_that_is_dropped_before_its_first_step_runs_nothing(tmp_path: Path) -> None:
    carried_trial(tmp_path / "one").cleanup()
    assert not list((tmp_path / "one").iterdir())


def test_an_actor_that_is_dropped_later_lets_its_trial_end_as_interrupted(tmp_path: Path) -> None:
    trial = carried_trial(tmp_path / "one")
    assert trial.step()["events"][-1].step == 10
    trial.cleanup()
    outcome = json.loads((tmp_path / "one" / "outcome.json").read_text())
    assert (outcome["outcome"], outcome["step"]) == ("interrupted", 10)
