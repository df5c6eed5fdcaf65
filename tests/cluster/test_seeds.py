"""Several seeds of each configuration: what is run, and what the searcher is told."""

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import standin
from optuna.trial import TrialState
from standin import DIVERGES_ONCE, LOSS, SPEED, carry, point, sweep_of
from views import Remembering

from bkray.cluster.budget import Budget
from bkray.cluster.carriers import Job
from bkray.cluster.driver import Driver
from bkray.cluster.ledger import Ledger
from bkray.cluster.retries import BROKEN
from bkray.cluster.tuner import SweepOptions, SweepOutcome, planned, resolve
from bkray.errors import ConfigError
from bkray.events import TrialEnded
from bkray.overrides import Overrides
from bkray.sinks.sink import InMemory
from bkray.sweep import Arm, Sweep, Trial

BOTH = (LOSS, SPEED)


def options(out: Path, **chosen: Any) -> SweepOptions:
    return SweepOptions(**({"out": out, "preset": "p", "local": True, "seeds": 3} | chosen))


def run(sweep: Sweep, out: Path, *views: Remembering, **chosen: Any) -> SweepOutcome:
    return carry(sweep, out, *views, **({"local": True, "seeds": 3} | chosen))


def one_rival(base: Overrides) -> list[Arm]:
    return [Arm(name="dense-1", overrides={"model.n_layers": 1})]


def told(out: Path) -> list[list[float] | None]:
    storage = f"sqlite:///{out / 'study.db'}"
    return [row.values for row in optuna.load_study(study_name="t", storage=storage).trials]


def proposals(out: Path) -> list[dict[str, Any]]:
    read = [json.loads(path.read_text()) for path in out.glob("trials/*/proposal.json")]
    return sorted(read, key=lambda proposal: int(proposal["number"]))


def test_every_configuration_and_rival_is_run_with_every_seed(tmp_path: Path) -> None:
    sweep = sweep_of(point(0.0), point(0.1), n_trials=2, rivals=one_rival)
    view = Remembering()
    ended = run(sweep, tmp_path, view, overrides={"seed": 5})
    assert ended.outcomes == {"ok": 9}
    assert ended.n_planned == 9
    assert json.loads((tmp_path / "sweep.json").read_text())["seeds"] == 3
    seen = [(p["number"], p["proposal"], p["arm"], p["seed"]) for p in proposals(tmp_path)]
    arms = ["dense-1", "", ""]
    assert seen == [(3 * c + i, c, arms[c], 5 + i) for c in range(3) for i in range(3)]
    folders = [tmp_path / "trials" / trial_id for trial_id, _ in view.trials]
    started = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert [config["seed"] for config in started] == [5, 6, 7] * 3
    assert [config["arm"] for config in started] == ["dense-1"] * 3 + [""] * 6


def test_the_searcher_is_told_the_means(tmp_path: Path) -> None:
    run(sweep_of(point(0.0), point(0.1), n_trials=2, objectives=BOTH), tmp_path)
    # a loss of 1 + dropout + 0.1 seed + 1 / 40 steps
    assert told(tmp_path) == [
        [pytest.approx(1.0 + 0.1 + 0.025, rel=1e-12), pytest.approx(1.0, rel=1e-12)],
        [pytest.approx(1.1 + 0.1 + 0.025, rel=1e-12), pytest.approx(1.1, rel=1e-12)],
    ]


def test_one_diverged_seed_makes_the_configuration_worse_than_the_worst(tmp_path: Path) -> None:
    sweep = sweep_of(point(0.2), point(0.3), point(DIVERGES_ONCE), n_trials=3, objectives=BOTH)
    view = Remembering()
    ended = run(sweep, tmp_path, view)
    assert ended.outcomes == Counter(ok=8, diverged=1)
    assert [outcome for outcome, _ in view.endings] == ["ok"] * 7 + ["diverged", "ok"]
    good, worse, infeasible = told(tmp_path)
    assert good is not None and worse is not None and infeasible is not None
    assert infeasible == [
        pytest.approx(2 * worse[0] - good[0], rel=1e-12),
        pytest.approx(2 * good[1] - worse[1], rel=1e-12),
    ]


def test_an_equal_configuration_is_not_run_again(tmp_path: Path) -> None:
    def coin(trial: Trial) -> Overrides:
        trial.suggest_categorical("model.n_layers", [1, 2])
        return {}

    ended = run(sweep_of(n_trials=6, space=coin), tmp_path)
    assert ended.outcomes == {"ok": 6}
    assert ended.n_reused == 4
    assert len(told(tmp_path)) == 6
    assert len(set(map(str, told(tmp_path)))) == 1


def test_a_configuration_interrupted_between_its_seeds_is_handed_out_again(
    tmp_path: Path,
) -> None:
    class Impatient(Remembering):
        def trial(self, trial_id: str) -> InMemory:
            if len(self.trials) == 4:  # the second seed of the second configuration
                os.kill(os.getpid(), signal.SIGINT)
            return super().trial(trial_id)

    sweep = sweep_of(point(0.1), point(0.2), n_trials=3)
    ended = run(sweep, tmp_path, Impatient())
    assert ended.outcomes == Counter(ok=4, interrupted=1)
    first, second = told(tmp_path)
    assert first is not None
    assert second is None
    ledger = Ledger(tmp_path, resolve(sweep, options(tmp_path)))
    again = ledger.ask()
    ledger.close()
    assert again is not None
    assert (again.number, again.config.model.dropout) == (1, 0.2)
    assert [again.seeded(turn)["seed"] for turn in range(3)] == [0, 1, 2]


class _Bench:
    """A driver without a carrier: the test takes jobs and ends them as it likes."""

    def __init__(self, out: Path, **chosen: Any) -> None:
        (out / "trials").mkdir(parents=True)
        sweep = sweep_of(point(0.1), point(0.2), n_trials=2, objectives=BOTH)
        self.out = out
        self.ledger = Ledger(out, resolve(sweep, options(out, **chosen)))
        self.driver = Driver(self.ledger, out, [], identify=standin.identify, budget=Budget(out))

    def next_job(self) -> Job:
        job = self.driver.next_job()
        assert job is not None
        return job

    def end(self, job: Job, loss: float | None, outcome: str = "ok") -> None:
        summary = {"best_val_loss_nats": loss, "speedup_measured": 1.0}
        ended = TrialEnded(step=1, outcome=outcome, reason="", summary=summary)
        self.driver.take(job, ended)
        if outcome in BROKEN:  # it comes again, and breaks alike
            again = self.next_job()
            assert again.number == job.number
            self.driver.take(again, ended)

    def close(self) -> list[tuple[TrialState, list[float] | None]]:
        self.driver.close()
        self.ledger.close()
        study = optuna.load_study(study_name="t", storage=f"sqlite:///{self.out / 'study.db'}")
        return [(row.state, row.values) for row in study.trials]


def test_seeds_may_run_side_by_side_and_end_in_any_order(tmp_path: Path) -> None:
    losses = [0.1, 0.7, 0.9, 5.0, 6.0, 7.5]
    found = []
    for name, order in (("a", range(6)), ("b", (4, 2, 5, 1, 0, 3))):
        bench = _Bench(tmp_path / name)
        jobs = [bench.next_job() for _ in losses]
        assert bench.driver.next_job() is None
        assert [job.number for job in jobs] == list(range(6))
        for i in order:
            bench.end(jobs[i], losses[i])
        found.append(bench.close())
    assert found[0] == found[1]
    assert [values for _, values in found[0]] == [
        [pytest.approx(1.7 / 3, rel=1e-12), 1.0],
        [pytest.approx(18.5 / 3, rel=1e-12), 1.0],
    ]


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        (("ok", "ok", "failed"), TrialState.FAIL),
        (("ok", "oom", "ok"), TrialState.FAIL),
        (("pruned", "ok", "ok"), TrialState.PRUNED),
        (("ok", "interrupted", "pruned"), TrialState.RUNNING),
        (("interrupted", "diverged", "failed"), TrialState.RUNNING),
        (("pruned", "diverged", "failed"), TrialState.COMPLETE),
    ],
)
def test_the_gravest_seed_decides(
    tmp_path: Path, outcomes: tuple[str, ...], state: TrialState
) -> None:
    bench = _Bench(tmp_path / "s")
    for _ in range(3):  # something finite to be worse than
        bench.end(bench.next_job(), 1.0)
    for outcome in outcomes:
        bench.end(bench.next_job(), 4.0, outcome)
    (_, first), (found, second) = bench.close()
    assert found == state
    assert first == [1.0, 1.0]
    # no mean of whole and of shortened trials
    assert second == ([2.0, 0.0] if state == TrialState.COMPLETE else None)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_a_number_missing_in_one_seed_is_missing_in_the_mean(
    tmp_path: Path, missing: float | None
) -> None:
    bench = _Bench(tmp_path / "s")
    for loss in (1.0, 1.0, 1.0, 1.0, missing, 1.0):
        bench.end(bench.next_job(), loss)
    assert bench.close()[1] == (TrialState.COMPLETE, [2.0, 1.0])


def test_one_seed_is_the_trial_itself(tmp_path: Path) -> None:
    bench = _Bench(tmp_path / "s", seeds=1, overrides={"seed": 2})
    job = bench.next_job()
    assert (job.number, job.overrides["seed"]) == (0, 2)
    bench.end(job, 0.3)
    assert bench.close()[0] == (TrialState.COMPLETE, [0.3, 1.0])
    (written,) = proposals(tmp_path / "s")
    assert (written["number"], written["proposal"], written["seed"]) == (0, 0, 2)


def test_a_plan_lists_configurations(tmp_path: Path) -> None:
    sweep = sweep_of(n_trials=2, rivals=one_rival)
    assert len(planned(sweep, options(tmp_path))) == 3
    search = resolve(sweep, options(tmp_path))
    assert (search.n_configurations, search.n_planned) == (3, 9)


@pytest.mark.parametrize(
    ("sweep", "chosen", "says"),
    [
        ({}, {"seeds": 0}, "seeds must be 1 or more, got 0"),
        ({}, {"seeds": -2}, "seeds must be 1 or more, got -2"),
        ({}, {"trials": 0}, "trials=0 and no rivals leave nothing to run"),
    ],
)
def test_what_leaves_nothing_to_run_is_told_when_the_sweep_is_resolved(
    tmp_path: Path, sweep: dict[str, Any], chosen: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve(sweep_of(n_trials=1, **sweep), options(tmp_path, **chosen))


def test_rivals_alone_are_something_to_run(tmp_path: Path) -> None:
    sweep = sweep_of(n_trials=1, rivals=one_rival)
    assert resolve(sweep, options(tmp_path, trials=0)).n_planned == 3


def searched_seed(trial: Trial) -> Overrides:
    trial.suggest_int("seed", 1, 9)
    return {}


def test_a_sweep_that_sets_seeds_itself_takes_no_others(tmp_path: Path) -> None:
    sweep = sweep_of(n_trials=2, space=searched_seed)
    with pytest.raises(ConfigError, match="seeds=3 count up from seed=0, but the sweep itself"):
        run(sweep, tmp_path / "three")
    assert run(sweep, tmp_path / "one", seeds=1).outcomes == {"ok": 2}


def lone_rivals(base: Overrides) -> list[Arm]:
    return [
        Arm(name="often", overrides={"model.mixer": "linear_recurrence"}),
        Arm(name="once", overrides={"model.mixer": "linear_recurrence", "seed": 3}),
    ]


def test_an_arm_with_a_seed_of_its_own_is_one_trial(tmp_path: Path) -> None:
    sweep = sweep_of(n_trials=0, rivals=lone_rivals)
    assert resolve(sweep, options(tmp_path)).n_planned == 4
    assert run(sweep, tmp_path / "s").outcomes == {"ok": 4}
    assert [(one["arm"], one["seed"]) for one in proposals(tmp_path / "s")] == [
        *(("often", seed) for seed in range(3)),
        ("once", 3),
    ]
    with pytest.raises(ConfigError, match="the sweep itself sets seed=3"):
        run(sweep, tmp_path / "four", seeds=4)


def test_a_preset_may_say_how_many_seeds(tmp_path: Path) -> None:
    sweep = sweep_of(n_trials=1)
    presets = {name: replace(one, seeds=5) for name, one in sweep.presets.items()}
    sweep = replace(sweep, presets=presets)
    assert resolve(sweep, options(tmp_path, seeds=None)).seeds == 5
    assert resolve(sweep, options(tmp_path, seeds=2)).seeds == 2


@pytest.mark.slow
def test_tune_tells_what_the_plain_carrier_tells(tmp_path: Path) -> None:
    sweep = sweep_of(point(0.2), point(0.3), point(DIVERGES_ONCE), n_trials=3, objectives=BOTH)
    here = run(sweep, tmp_path / "here")
    tune = run(sweep, tmp_path / "tune", local=False, concurrency=2, scheduler="none")
    assert here.outcomes == tune.outcomes == Counter(ok=8, diverged=1)
    assert told(tmp_path / "here") == told(tmp_path / "tune")
    assert proposals(tmp_path / "here") == proposals(tmp_path / "tune")
