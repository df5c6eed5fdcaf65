"""Configurations of several seeds: a run above the trials, honest about the seeds it lacks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from shown import SWEPT, started

from bkray.events import TrialEnded
from bkray.overrides import configuration_id
from bkray.sinks.mlflow import MlflowView, Tracking, embedded_store


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return embedded_store(tmp_path_factory.mktemp("runs"))


def config_of(seed: int, act_lambda: float) -> dict[str, Any]:
    return {**started().config, "model.act_lambda": act_lambda, "seed": seed}


def run_seed(view: MlflowView, seed: int, loss: float | None, act_lambda: float = 0.01) -> None:
    """One trial; without a loss it diverges."""
    trial_id = f"{act_lambda}-{seed}"
    sink = view.trial(trial_id)
    sink(started(trial_id, seed=seed, config=config_of(seed, act_lambda)))
    outcome = "diverged" if loss is None else "ok"
    summary = {"best_val_loss_nats": loss, "avg_layers_executed": 2.0 if seed == 0 else None}
    sink(TrialEnded(step=1, outcome=outcome, reason="", summary=summary))
    sink.close()


def show(tracking: Tracking, sweep: str, seeds: int, losses: Mapping[int, float | None]) -> None:
    view = MlflowView(tracking, "seeds", sweep, {}, SWEPT, seeds=seeds)
    for seed, loss in losses.items():
        run_seed(view, seed, loss)
    view.close()


def levels(tracking: Tracking, sweep: str) -> dict[str, list[Any]]:
    """The runs of a sweep by their level."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name("seeds")
    found: dict[str, list[Any]] = {"sweep": [], "configuration": [], "seed": []}
    for run in client.search_runs([experiment.experiment_id], f"tags.sweep_run = '{sweep}'"):
        found[run.data.tags["level"]].append(run)
    return found


def test_a_configuration_stands_between_the_sweep_and_its_seeds(tracking: Tracking) -> None:
    show(tracking, "tree", 3, {0: 1.0, 1: 2.0, 2: 6.0})
    found = levels(tracking, "tree")
    [sweep], [configuration] = found["sweep"], found["configuration"]
    assert configuration.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    parents = {seed.data.tags["mlflow.parentRunId"] for seed in found["seed"]}
    assert parents == {configuration.info.run_id}
    assert configuration.info.run_name == "thr=0.95 lam=0.01"
    names = {seed.info.run_name for seed in found["seed"]}
    assert names == {f"seed={seed} thr=0.95 lam=0.01" for seed in range(3)}
    hashes = {run.data.tags["config_hash"] for run in (configuration, *found["seed"])}
    assert hashes == {configuration_id(config_of(0, 0.01))}
    assert configuration.data.params["model.act_threshold"] == "0.95"


def test_a_configuration_shows_means_once_all_seeds_have_ended(tracking: Tracking) -> None:
    show(tracking, "means", 3, {0: 1.0, 1: 2.0, 2: 6.0})
    [configuration] = levels(tracking, "means")["configuration"]
    assert configuration.data.metrics == {"best/val_loss_nats": 3.0, "n": 3, "n_diverged": 0}
    assert configuration.data.tags["outcome"] == "ok"
    assert configuration.info.status == "FINISHED"


@pytest.mark.parametrize("diverged", [0, 2], ids=["first", "last"])
def test_a_diverged_seed_is_never_averaged_away(tracking: Tracking, diverged: int) -> None:
    losses: dict[int, float | None] = {seed: 1.0 for seed in range(3)}
    losses[diverged] = None
    show(tracking, f"diverged-{diverged}", 3, losses)
    [configuration] = levels(tracking, f"diverged-{diverged}")["configuration"]
    assert configuration.data.metrics == {"n": 3, "n_diverged": 1}
    assert configuration.data.tags["outcome"] == "diverged"
    assert configuration.info.status == "FAILED"


def test_a_configuration_that_lacks_a_seed_has_no_mean_yet(tracking: Tracking) -> None:
    show(tracking, "halted", 3, {0: 1.0, 1: 2.0})
    [configuration] = levels(tracking, "halted")["configuration"]
    assert configuration.data.metrics == {"n": 2, "n_diverged": 0}
    assert configuration.data.tags["outcome"] == "interrupted"
    assert configuration.info.status == "KILLED"
    show(tracking, "halted", 3, {2: 6.0})  # by another process, perhaps
    [configuration] = levels(tracking, "halted")["configuration"]
    assert configuration.data.metrics == {"best/val_loss_nats": 3.0, "n": 3, "n_diverged": 0}
    assert (configuration.data.tags["outcome"], configuration.info.status) == ("ok", "FINISHED")


def test_a_rival_with_a_seed_of_its_own_stands_alone(tracking: Tracking) -> None:
    show(tracking, "alone", 3, {0: 1.0, 1: 2.0, 2: 6.0, 9: 3.0})
    found = levels(tracking, "alone")
    assert len(found["seed"]) == 3
    [alone] = [run for run in found["configuration"] if run.data.tags.get("seed") == "9"]
    assert alone.data.tags["mlflow.parentRunId"] == found["sweep"][0].info.run_id
    assert alone.data.tags["outcome"] == "ok"
    assert len(found["configuration"]) == 2


def test_interleaved_configurations_keep_their_seeds_apart(tracking: Tracking) -> None:
    view = MlflowView(tracking, "seeds", "interleaved", {}, SWEPT, seeds=2)
    for seed in range(2):
        for act_lambda in (0.1, 0.2):
            run_seed(view, seed, loss=10 * act_lambda + seed, act_lambda=act_lambda)
    view.close()
    best = {
        run.data.params["model.act_lambda"]: run.data.metrics["best/val_loss_nats"]
        for run in levels(tracking, "interleaved")["configuration"]
    }
    assert best == {"0.1": 1.5, "0.2": 2.5}


def test_one_seed_needs_no_run_above_it(tracking: Tracking) -> None:
    show(tracking, "single", 1, {0: 1.0})
    found = levels(tracking, "single")
    assert (len(found["configuration"]), len(found["seed"])) == (1, 0)
    [sweep], [trial] = found["sweep"], found["configuration"]
    assert trial.data.tags["mlflow.parentRunId"] == sweep.info.run_id


def test_trials_are_told_apart_by_the_first_letters_of_their_names() -> None:
    from bkray.sinks.mlflow_names import configuration_name, trial_name

    names = [
        trial_name(started(seed=seed, config=config_of(seed, lam)), SWEPT, several=True)[:25]
        for seed in range(2)
        for lam in (0.01, 0.02)
    ]
    assert len(set(names)) == 4
    assert configuration_name(started(arm="dense-2"), SWEPT) == "dense-2"
    assert configuration_name(started(), ("model.n_seq",)) == "n_seq=128"
    assert configuration_name(started(), ()) == "act"


def test_the_store_is_found_again_by_its_folder(tracking: Tracking) -> None:
    folder = Path(tracking.uri.removeprefix("sqlite:///")).parent
    assert embedded_store(folder) == tracking
