"""A whole sweep on the plain carrier: its record, its folders, its ends, its complaints."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import standin
from standin import DIVERGES, FAILS, LOSS, OUT_OF_MEMORY, SPEED, carry, point, sweep_of
from views import Remembering

from bkray.cluster.tuner import SweepOptions, SweepOutcome, planned
from bkray.errors import ConfigError, ResumeError
from bkray.events import EvalDone, Event
from bkray.overrides import Overrides
from bkray.sweep import Arm, Objective, Preset, Sweep, Trial


def run(sweep: Sweep, out: Path, *views: Remembering, **options: Any) -> SweepOutcome:
    return carry(sweep, out, *views, **({"local": True} | options))


def one_rival(base: Overrides) -> list[Arm]:
    return [Arm(name="dense-1", overrides={"model.n_layers": 1})]


def test_leaves_the_folder_that_the_reports_read(tmp_path: Path) -> None:
    out = tmp_path / "s"
    view = Remembering()
    ended = run(sweep_of(n_trials=2, rivals=one_rival), out, view, overrides={"seed": 4})
    assert dict(ended.outcomes) == {"ok": 3}
    record = json.loads((out / "sweep.json").read_text())
    assert record["name"] == "t"
    assert record["preset"] == "p"
    assert record["objectives"] == [{"column": "best_val_loss_nats", "direction": "minimize"}]
    assert record["swept"] == ["optimizer.lr", "model.dropout"]
    assert record["overrides"] == {"seed": 4}
    assert record["arms"] == ["dense-1"]
    assert record["data_hash"] == "data"
    assert {"git", "versions", "python", "hardware", "started"} <= record.keys()
    for number, (trial_id, _) in enumerate(view.trials):
        folder = out / "trials" / trial_id
        proposal = json.loads((folder / "proposal.json").read_text())
        assert proposal["number"] == number
        assert proposal["arm"] == ("dense-1" if number == 0 else "")
        assert json.loads((folder / "outcome.json").read_text())["outcome"] == "ok"
    assert sorted(path.name for path in out.iterdir()) == ["study.db", "sweep.json", "trials"]


def test_a_trial_that_breaks_does_not_break_the_sweep(tmp_path: Path) -> None:
    view = Remembering()
    bad = [point(FAILS), point(OUT_OF_MEMORY), point(DIVERGES)]
    ended = run(sweep_of(*bad, n_trials=5), tmp_path, view)
    assert dict(ended.outcomes) == {"failed": 1, "oom": 1, "diverged": 1, "ok": 2}
    assert ended.first_failure == "RuntimeError: the stand-in broke"
    assert view.endings[:3] == [
        ("failed", "RuntimeError: the stand-in broke"),
        ("oom", "MemoryError: Unable to allocate 10.0 TiB for an array"),
        ("diverged", "loss is nan at step 10"),
    ]
    broken = tmp_path / "trials" / view.trials[0][0]
    assert json.loads((broken / "outcome.json").read_text())["stop_reason"] == ended.first_failure
    assert "standin.py" in (broken / "error.txt").read_text()


def test_equal_sweeps_show_equal_events(tmp_path: Path) -> None:
    a, b = Remembering(), Remembering()
    run(sweep_of(n_trials=3), tmp_path / "a", a)
    run(sweep_of(n_trials=3), tmp_path / "b", b)
    assert a.events == b.events


def test_an_interrupted_sweep_ends_its_trial_and_starts_no_other(tmp_path: Path) -> None:
    class Impatient(Remembering):
        def trial(self, trial_id: str) -> Any:
            sink = super().trial(trial_id)
            remember = sink.__call__

            def call(event: Event) -> None:
                remember(event)
                if isinstance(event, EvalDone) and event.step == 20:
                    os.kill(os.getpid(), signal.SIGINT)

            return _Calling(call)

    view = Impatient()
    ended = run(sweep_of(n_trials=3), tmp_path, view)
    assert ended.interrupted
    assert dict(ended.outcomes) == {"interrupted": 1}
    assert view.endings == [("interrupted", "ctrl-c")]
    assert view.trials[0][1].events[-1].step == 20
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class _Calling:
    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, event: Event) -> None:
        self._call(event)

    def close(self) -> None:
        pass


def test_a_time_budget_ends_the_sweep(tmp_path: Path) -> None:
    ended = run(sweep_of(n_trials=3), tmp_path, time_budget_seconds=0.0)
    assert ended.over_budget
    assert not ended.interrupted
    assert not ended.outcomes


def test_a_time_budget_ends_a_trial_under_way(tmp_path: Path) -> None:
    view = Remembering()
    endless = sweep_of(n_trials=3, base={"train.steps": 10**9, "train.eval_every": 10**9})
    ended = run(endless, tmp_path, view, time_budget_seconds=0.3)
    assert ended.over_budget
    assert view.endings == [("interrupted", "time budget")]


def test_what_is_planned_is_known_without_running(tmp_path: Path) -> None:
    def stepped(trial: Trial) -> Overrides:
        trial.suggest_int("model.n_layers", 1, 2)
        return {}

    sweep = sweep_of(n_trials=7, rivals=one_rival, grid=stepped)
    plan = planned(sweep, SweepOptions(out=tmp_path / "none", preset="p", sampler="grid"))
    assert [(p.number, p.arm, p.config.model.n_layers) for p in plan] == [
        (0, "dense-1", 1),
        (1, "", 1),
        (2, "", 2),
    ]
    assert not (tmp_path / "none").exists()


def test_a_plan_is_what_the_sweep_then_does(tmp_path: Path) -> None:
    view = Remembering()
    sweep = sweep_of({"model.dropout": 0.2}, n_trials=4, rivals=one_rival)
    run(sweep, tmp_path, view)
    plan = planned(sweep, SweepOptions(out=tmp_path, preset="p"))
    assert [standin.identify(p.config)[0] for p in plan] == [name for name, _ in view.trials]


def test_a_sampler_that_learns_is_planned_no_further_than_its_first_points() -> None:
    sweep = sweep_of(point(0.1), n_trials=4)
    options = SweepOptions(out=Path("none"), preset="p", sampler="tpe")
    assert [p.config.model.dropout for p in planned(sweep, options)] == [0.1]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_a_mistake_in_the_space_of_a_learning_sampler_is_told_by_the_plan(sampler: str) -> None:
    options = SweepOptions(out=Path("none"), preset="p", sampler=sampler)
    with pytest.raises(ConfigError, match=r"model\.n_layers"):
        planned(sweep_of(n_trials=4, space=impossible), options)


def test_a_grid_of_the_presets_own_is_cut_at_its_trials(tmp_path: Path) -> None:
    def stepped(trial: Trial) -> Overrides:
        trial.suggest_int("model.n_layers", 1, 9)
        return {}

    sweep = sweep_of(n_trials=0, grid=stepped, presets={"p": Preset(trials=4, sampler="grid")})
    options = SweepOptions(out=tmp_path, preset="p")
    assert len(planned(sweep, options)) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": "tiny"}, "preset must be one of p, got 'tiny'"),
        ({"sampler": "best"}, "sampler must be one of"),
        ({"scheduler": "best"}, "scheduler must be one of"),
        ({"concurrency": 2}, "one trial at a time"),
        ({"trials": -1}, "trials must be 0 or more"),
        ({"overrides": {"model.dropot": 1}}, "model.dropout"),
        ({"overrides": {"model.dropout": 1.5}}, "model.dropout"),
        ({"overrides": {"threads": 4096}}, "CPU cores"),
    ],
)
def test_what_cannot_be_run_is_said_before_a_folder_is_made(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        run(sweep_of(n_trials=1), tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")
    with pytest.raises(ConfigError, match="is a file"):
        run(sweep_of(n_trials=1), tmp_path / "s")


def test_a_folder_that_holds_a_sweep_is_left_alone(tmp_path: Path) -> None:
    run(sweep_of(n_trials=1), tmp_path / "s")
    with pytest.raises(ResumeError, match="already holds a sweep"):
        run(sweep_of(n_trials=1), tmp_path / "s")


@pytest.mark.parametrize("column", ["val_los", "trial_id", "outcome", "seed"])
def test_an_objective_that_is_no_number_of_trials_is_told_before_one_runs(
    tmp_path: Path, column: str
) -> None:
    sweep = sweep_of(n_trials=1, objectives=(Objective(column=column, direction="minimize"),))
    with pytest.raises(ConfigError, match=rf"'{column}'.*best_val_loss_nats"):
        run(sweep, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_an_objective_that_these_trials_never_fill_names_what_they_fill(tmp_path: Path) -> None:
    sweep = sweep_of(n_trials=1, objectives=(Objective(column="kl_nats", direction="minimize"),))
    with pytest.raises(ConfigError, match=r"'kl_nats'.*: known are best_val_loss_nats, speedup"):
        run(sweep, tmp_path)


def impossible(trial: Trial) -> Overrides:
    return {"model.n_layers": trial.suggest_int("model.n_layers", -2, -1)}


@pytest.mark.parametrize("existed", [False, True])
def test_an_error_before_the_first_trial_leaves_no_new_folder(
    tmp_path: Path, existed: bool
) -> None:
    if existed:
        (tmp_path / "s").mkdir()
    with pytest.raises(ConfigError, match=r"model\.n_layers"):
        run(sweep_of(n_trials=1, space=impossible), tmp_path / "s")
    assert (tmp_path / "s").exists() == existed


def test_an_error_after_the_first_trial_keeps_what_it_wrote(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.n_layers"):
        run(sweep_of(n_trials=1, space=impossible, rivals=one_rival), tmp_path / "s")
    assert len(list((tmp_path / "s").glob("trials/*/outcome.json"))) == 1


def test_several_objectives_are_not_pruned_unless_asked(tmp_path: Path) -> None:
    run(sweep_of(n_trials=1, objectives=(LOSS, SPEED)), tmp_path)
    assert json.loads((tmp_path / "sweep.json").read_text())["scheduler"] == "none"


def test_the_plain_carrier_never_imports_ray(tmp_path: Path) -> None:
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import pathlib, standin
from bkray.cluster.tuner import SweepOptions, run_sweep
out = pathlib.Path({str(tmp_path / "s")!r})
ended = run_sweep(standin.sweep_of(n_trials=1), SweepOptions(out=out, preset="p", local=True),
                  parts=standin.PARTS, identify=standin.identify)
assert ended.outcomes == {{"ok": 1}}
assert "ray" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
