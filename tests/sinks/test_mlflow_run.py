"""A run that is written late: repeated, refused and taken up again."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shown import ended, evaluation, started, window

from bkray.sinks.mlflow import Tracking, embedded_store
from bkray.sinks.mlflow_client import PatientClient
from bkray.sinks.mlflow_runs import SweepRun, SweepShown
from bkray.sinks.mlflow_trial import TrialRun

KNOBS = ("model.act_lambda",)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return embedded_store(tmp_path_factory.mktemp("runs"))


class LosesAnswers(PatientClient):
    """Makes each request twice, as after an answer that was lost on its way."""

    def ask(self, request: Callable[[Any], Any]) -> Any:
        return super().ask(lambda client: (request(client), request(client))[1])


def sweep_of(client: PatientClient, name: str, seeds: int = 1) -> SweepRun:
    shown = SweepShown(experiment="runs", name=name, meta={}, swept=KNOBS, seeds=seeds)
    sweep = SweepRun(client, shown)
    sweep.begin(1000)
    return sweep


def all_of(tracking: Tracking, name: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name("runs")
    return list(client.search_runs([experiment.experiment_id], f"tags.sweep_run = '{name}'"))


def patient(tracking: Tracking, told: list[str]) -> PatientClient:
    return PatientClient(tracking, threading.Event(), told.append)


@pytest.mark.parametrize("seeds", [1, 2])
def test_every_request_bears_to_be_repeated(tracking: Tracking, seeds: int) -> None:
    told: list[str] = []
    client = LosesAnswers(tracking, threading.Event(), told.append)
    sweep = sweep_of(client, f"repeated-{seeds}", seeds)
    for seed in range(2):
        trial = TrialRun(sweep)
        config = {**started().config, "seed": seed}
        first = started(f"t{seed}", seed=seed, config=config)
        for event in [first, window(16), evaluation(16), ended(16)]:
            trial.take(event, 2000)
        trial.write()
    sweep.end(3000)
    runs = all_of(tracking, f"repeated-{seeds}")
    levels = sorted(run.data.tags["level"] for run in runs)
    assert (
        levels
        == {
            1: ["configuration", "configuration", "sweep"],
            2: ["configuration", "seed", "seed", "sweep"],
        }[seeds]
    )
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert told == []


def test_what_the_store_refuses_does_not_take_the_rest_with_it(tracking: Tracking) -> None:
    from mlflow.entities import Metric

    told: list[str] = []
    sweep = sweep_of(patient(tracking, told), "refused")
    run = sweep.late_run("a run", 2000)
    run.identity["trial_id"] = "t"
    run.tags = {"good": "1"}
    run.params = {"no # name": "1"}
    run.metrics = [Metric("good", 1.0, 2000, 0)]
    run.open()
    run.tags = {"later": "1"}
    run.write()
    [found] = [run for run in all_of(tracking, "refused") if run.info.run_name == "a run"]
    assert (found.data.metrics, found.data.params) == ({"good": 1.0}, {})
    assert {"good": "1", "later": "1"}.items() <= found.data.tags.items()
    assert len(told) == 1


def test_a_trial_that_died_unborn_runs_again_with_all_its_numbers(tracking: Tracking) -> None:
    told: list[str] = []
    sweep = sweep_of(patient(tracking, told), "unborn")
    for n_params, event in ((0, ended(0, "failed")), (250, ended(16))):
        trial = TrialRun(sweep)
        trial.take(started("t", n_params=n_params), 2000)
        trial.take(event, 2000)
        trial.write()
    [found] = [run for run in all_of(tracking, "unborn") if "trial_id" in run.data.tags]
    assert found.data.params["n_params"] == "250"
    assert (found.data.metrics["final/steps"], found.info.status) == (16, "FINISHED")
    assert told == []


def test_files_keep_their_folders(tracking: Tracking, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    (tmp_path / "a.txt").write_text("a")
    sweep = sweep_of(patient(tracking, []), "files")
    run = sweep.late_run("a run", 2000)
    run.identity["trial_id"] = "t"
    run.files = [(tmp_path / "a.txt", ""), (tmp_path / "a.txt", "deep/er")]
    run.write()
    assert run.run_id is not None
    client = MlflowClient(tracking.uri)
    assert [f.path for f in client.list_artifacts(run.run_id)] == ["a.txt", "deep"]
    assert [f.path for f in client.list_artifacts(run.run_id, "deep/er")] == ["deep/er/a.txt"]
