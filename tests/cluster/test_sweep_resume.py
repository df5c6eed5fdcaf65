"""A sweep that was killed goes on, and ends as an undisturbed one does."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import standin
from standin import DIVERGES, FAILS, FAILS_ONCE, SPEED, carry, point, sweep_of
from test_locks import held_by_another_process
from views import Remembering

from bkray.cluster.carriers import DRIVER, Job, Parts, ask_to_stop, asked_to_stop, attempt
from bkray.cluster.tuner import run_sweep
from bkray.errors import ConfigError, ResumeError, StorageError
from bkray.events import EvalDone, Event, TrialEnded, TrialStarted
from bkray.overrides import Overrides
from bkray.report.tables import write_trials_parquet
from bkray.sinks.parquet import ParquetSink
from bkray.sinks.sink import InMemory
from bkray.sweep import Arm, Preset, Sweep, Trial

NOT_OF_THE_SWEEP = {"attempt"}
"""Columns in which a resumed sweep differs: the stand-in has no clocks."""


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of bkray catches it, and nothing is written any more."""


class Killing(Remembering):
    """Kills the sweep when a trial says something for the ``n``-th time."""

    def __init__(self, n: int, kind: type = object) -> None:
        super().__init__()
        self._left = n
        self._kind = kind

    def trial(self, trial_id: str) -> InMemory:
        super().trial(trial_id)
        return self  # type: ignore[return-value]

    def __call__(self, event: Event) -> None:
        self.trials[-1][1](event)
        self._left -= isinstance(event, self._kind)
        if self._left == 0:
            raise KilledError


def suddenly(sweep: Sweep, out: Path, view: Killing, **options: Any) -> bool:
    """Run or resume until the view kills; return whether it did. What a dying process would still
    write is taken back: the folder is what it was at that moment."""
    at_the_kill = out.with_name(f"{out.name}-at-the-kill")

    def snapshot() -> None:
        shutil.rmtree(at_the_kill, ignore_errors=True)
        shutil.copytree(out, at_the_kill)

    kill = view.__call__

    def call(event: Event) -> None:
        try:
            kill(event)
        except KilledError:
            snapshot()
            raise

    view.__class__ = type("Snapshotting", (Killing,), {"__call__": lambda _, event: call(event)})
    try:
        carry(sweep, out, view, local=True, resume=(out / "sweep.json").exists(), **options)
    except KilledError:
        shutil.rmtree(out)
        at_the_kill.rename(out)
        return True
    return False


def table(out: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(write_trials_parquet(out)).to_pylist()
    return [{k: v for k, v in row.items() if k not in NOT_OF_THE_SWEEP} for row in rows]


def one_rival(base: Overrides) -> list[Arm]:
    return [Arm(name="dense-1", overrides={"model.n_layers": 1})]


MIXED = (point(0.0), point(FAILS), point(DIVERGES), point(FAILS_ONCE), point(0.3, 0.05))


@pytest.mark.parametrize(("sampler", "scheduler"), [("tpe", "asha"), ("qmc", "median")])
def test_a_sweep_killed_again_and_again_ends_as_an_undisturbed_one(
    tmp_path: Path, sampler: str, scheduler: str
) -> None:
    sweep = sweep_of(*MIXED, n_trials=8, rivals=one_rival)
    options = {"sampler": sampler, "scheduler": scheduler}
    whole = carry(sweep, tmp_path / "whole", local=True, **options)
    n_kills = 0
    while suddenly(sweep, tmp_path / "parts", Killing(5 + n_kills % 5), **options):
        n_kills += 1
        assert n_kills < 40
    assert n_kills >= 8
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    again = carry(sweep, tmp_path / "parts", local=True, resume=True, **options)
    assert again.outcomes == whole.outcomes
    assert json.loads((tmp_path / "parts" / "sweep.json").read_text())["resumed"]


def test_what_has_ended_is_not_run_again_and_seeds_are_answered_from_the_store(
    tmp_path: Path,
) -> None:
    sweep = sweep_of(point(0.1), point(0.2), n_trials=2)
    # the 5 ended trials are seeds 0, 1, 2 of the first and 0, 1 of the second configuration
    assert suddenly(sweep, tmp_path / "s", Killing(6, TrialStarted), seeds=3)
    view = Remembering()
    ended = carry(sweep, tmp_path / "s", view, local=True, resume=True, seeds=3)
    assert [events[0].seed for _, events in view.events] == [2]  # type: ignore[union-attr]
    assert ended.outcomes == {"ok": 6}
    assert ended.n_planned == 6


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_a_trial_condemned_before_the_kill_ends_where_it_was_condemned(
    tmp_path: Path, scheduler: str
) -> None:
    """The kill comes between an evaluation and the end that it condemns the trial to."""
    sweep = sweep_of(*(point(0.0, 10**-2.5 * 10 ** (i / 4)) for i in range(5)), n_trials=5)
    view = Remembering()
    carry(sweep, tmp_path / "whole", view, local=True, scheduler=scheduler)
    n, condemning = 0, []
    for _, events in view.events:
        n += sum(isinstance(event, EvalDone) for event in events)
        if isinstance(events[-1], TrialEnded) and events[-1].outcome == "pruned":
            condemning.append(n)
    assert condemning
    for n in condemning[:2]:
        out = tmp_path / f"killed-{n}"
        assert suddenly(sweep, out, Killing(n, EvalDone), scheduler=scheduler)
        (folder,) = (f for f in _trials(out) if not (f / "outcome.json").exists())
        _have_checkpoint(folder)
        carry(sweep, out, local=True, resume=True, scheduler=scheduler)
        assert table(out) == table(tmp_path / "whole")
        shutil.rmtree(out)


def _trials(out: Path) -> list[Path]:
    return [path.parent for path in out.glob("trials/*/config.json")]


def _evaluations(folder: Path) -> list[int]:
    from bkray.sinks.parquet import read_rows

    rows = read_rows(folder).to_pylist()
    return [row["step"] for row in rows if row["name"] == "val/loss_nats"]


def _have_checkpoint(folder: Path) -> None:
    """Let the checkpoint of the last evaluation be written, as it may have been."""
    (folder / "checkpoint.json").write_text(json.dumps(_evaluations(folder)[-1]))


def test_more_trials_may_be_asked_for(tmp_path: Path) -> None:
    carry(sweep_of(n_trials=6), tmp_path / "six", local=True)
    carry(sweep_of(n_trials=2), tmp_path / "s", local=True)
    view = Remembering()
    ended = carry(sweep_of(n_trials=2), tmp_path / "s", view, local=True, resume=True, trials=6)
    assert len(view.trials) == 4
    assert ended.n_planned == 6
    assert table(tmp_path / "s") == table(tmp_path / "six")


def test_a_time_budget_counts_anew(tmp_path: Path) -> None:
    assert carry(sweep_of(n_trials=2), tmp_path, local=True, time_budget_seconds=0.0).over_budget
    ended = carry(sweep_of(n_trials=2), tmp_path, local=True, resume=True)
    assert ended.outcomes == {"ok": 2}


def other_space(trial: Trial) -> Overrides:
    trial.suggest_float("optimizer.lr", 1e-4, 1.0, log=True)
    trial.suggest_categorical("model.n_layers", [1, 2])
    return {}


@pytest.mark.parametrize(
    ("changed", "options", "says"),
    [
        (
            {"space": other_space},
            {},
            "space optimizer.lr was float 0.0001..0.1 log, is float 0.0001..1 log; "
            "space model.dropout was float 0..0.5, is absent; "
            "space model.n_layers was absent, is one of 1, 2",
        ),
        ({"objectives": (SPEED,)}, {}, "objectives was .*best_val_loss_nats.* is .*speedup"),
        ({"base": {"train.steps": 50, "train.eval_every": 10}}, {}, "train.steps was 40, is 50"),
        ({"rivals": one_rival}, {}, "rivals dense-1 was absent"),
        ({"first": ({"model.dropout": 0.1},)}, {}, "first was .*, is .*0.1"),
        ({}, {"sampler": "random"}, "sampler was qmc, is random"),
        ({}, {"seed": 3}, "seed was 0, is 3"),
        ({}, {"seeds": 2}, "seeds was 1, is 2"),
        ({}, {"overrides": {"model.d_model": 32}}, "overrides model.d_model was absent, is 32"),
    ],
)
def test_what_decides_the_trials_may_not_change(
    tmp_path: Path, changed: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    carry(sweep_of(n_trials=1), tmp_path, local=True)
    before = (tmp_path / "sweep.json").read_text()
    with pytest.raises(ResumeError, match=says):
        carry(sweep_of(n_trials=1, **changed), tmp_path, local=True, resume=True, **options)
    assert (tmp_path / "sweep.json").read_text() == before


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("bkray", "0.0.1", "bkray was 0.0.1, is "),
        ("data_hash", "old", "data_hash was old, is data"),
    ],
)
def test_another_version_or_text_is_refused(
    tmp_path: Path, key: str, value: str, says: str
) -> None:
    carry(sweep_of(n_trials=1), tmp_path, local=True)
    record = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps({**record, key: value}))
    with pytest.raises(ResumeError, match=says):
        carry(sweep_of(n_trials=1), tmp_path, local=True, resume=True)


def test_a_folder_without_a_sweep_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"holds no sweep: sweep\.json is missing"):
        carry(sweep_of(n_trials=1), tmp_path / "none", local=True, resume=True)
    assert not (tmp_path / "none").exists()


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    carry(sweep_of(n_trials=1), tmp_path, local=True)
    with (
        held_by_another_process(tmp_path / DRIVER),
        pytest.raises(ResumeError, match="a sweep runs in"),
    ):
        carry(sweep_of(n_trials=1), tmp_path, local=True, resume=True)
    assert carry(sweep_of(n_trials=1), tmp_path, local=True, resume=True).outcomes == {"ok": 1}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder = tmp_path / "trials" / "one"
    folder.mkdir(parents=True)
    return Job(
        number=0,
        trial_id="one",
        data_hash="data",
        sweep="t",
        overrides={"train.steps": 40, "train.eval_every": 10},
        folder=folder,
        sweep_folder=tmp_path,
        deadline=None,
        driver="mine",
    )


def test_a_trial_ends_when_another_driver_has_taken_over(job: Job) -> None:
    assert asked_to_stop(job) is None
    (job.sweep_folder / DRIVER).write_text("mine")
    assert asked_to_stop(job) is None
    (job.sweep_folder / DRIVER).write_text("theirs")
    asked = asked_to_stop(job)
    assert asked is not None
    assert asked.outcome == "interrupted"
    events = list(attempt(job, standin.PARTS))
    assert events[-1].outcome == "interrupted"  # type: ignore[union-attr]


def test_pruning_waits_for_the_step_of_its_evaluation(job: Job) -> None:
    ask_to_stop(job.folder, "pruned", "asha at step 20", from_step=20)
    assert asked_to_stop(job, 10) is None
    assert asked_to_stop(job, 20) == ("pruned", "asha at step 20")
    last = list(attempt(job, standin.PARTS))[-1]
    assert isinstance(last, TrialEnded)
    assert (last.step, last.outcome) == (20, "pruned")


def test_an_attempt_waits_for_the_one_before_it_and_leaves_its_files_alone(job: Job) -> None:
    with held_by_another_process(job.folder / ".lock") as orphan:
        events = list(attempt(job, standin.PARTS, patience_seconds=0.5))
        last = events[-1]
        assert isinstance(last, TrialEnded)
        assert last.outcome == "interrupted"
        assert "another process trains in" in last.reason
        assert not (job.folder / "outcome.json").exists()
        assert not (job.folder / "attempt.json").exists()
        with pytest.raises(ResumeError, match="another process trains in"):
            list(attempt(job, standin.PARTS, passed_on=(ResumeError,), patience_seconds=0.0))
        orphan.kill()
        assert list(attempt(job, standin.PARTS))[-1].outcome == "ok"  # type: ignore[union-attr]


def test_what_a_killed_driver_left_is_removed(tmp_path: Path) -> None:
    carry(sweep_of(n_trials=1), tmp_path, local=True)
    (folder,) = _trials(tmp_path)
    ask_to_stop(folder, "pruned", "long ago")
    ask_to_stop(tmp_path, "interrupted", "long ago")
    (tmp_path / ".tune" / "tune").mkdir(parents=True)
    (folder / ".train").mkdir()
    (tmp_path / DRIVER).write_text("dead")
    (tmp_path / "sweep.json.1234.tmp").write_text("half")
    ended = carry(sweep_of(n_trials=1), tmp_path, local=True, resume=True, trials=2)
    assert ended.outcomes == {"ok": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.db", "sweep.json", "trials"]
    assert not (folder / ".train").exists()
    assert not (folder / ".stop").exists()


class Full(ParquetSink):
    """Finds no room at the second evaluation, nor for anything afterwards."""

    full = False

    def __call__(self, event: Event) -> None:
        self.full = self.full or (isinstance(event, EvalDone) and event.step == 20)
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events")
        super().__call__(event)


def test_a_trial_that_finds_no_room_fails_with_that_reason(tmp_path: Path, job: Job) -> None:
    job = replace(job, driver="")
    (job.folder / "error.txt").mkdir()  # cannot be written either
    last = list(attempt(job, Parts(standin.run, Full)))[-1]
    assert isinstance(last, TrialEnded)
    assert last.outcome == "failed"
    assert "No space left on device" in last.reason
    assert _evaluations(job.folder) == [10]


@pytest.mark.parametrize("what", ["view", "identify"])
def test_a_driver_that_finds_no_room_says_how_to_go_on(tmp_path: Path, what: str) -> None:
    def no_room(*_: object) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "study.db")

    class Breaking(Remembering):
        trial = no_room  # type: ignore[assignment]

    calls = iter([standin.identify] * 2)
    options = standin.SweepOptions(out=tmp_path / "s", preset="p", local=True, scheduler="none")
    with pytest.raises(StorageError, match=r"disk full: .*bkray resume .*/s"):
        run_sweep(
            sweep_of(n_trials=3),
            options,
            [Breaking()] if what == "view" else [],
            parts=standin.PARTS,
            identify=lambda config: next(calls, no_room)(config),  # type: ignore[arg-type,return-value]
        )


def test_an_unknown_preset_of_a_changed_sweep_is_told(tmp_path: Path) -> None:
    carry(sweep_of(n_trials=1), tmp_path, local=True)
    with pytest.raises(ConfigError, match="preset must be one of q"):
        changed = sweep_of(n_trials=1, presets={"q": Preset(trials=1)})
        carry(changed, tmp_path, local=True, resume=True)
