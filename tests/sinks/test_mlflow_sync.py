"""An upload from Parquet leaves nothing out and writes nothing twice, whatever was there."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kept import keep_sweep, points, stored
from servers import served
from shown import SWEPT, ended, evaluation, started, window

from benchmarks.slow_server import slowed
from bkray.errors import TrackingError
from bkray.events import Event, MemoryPeak, Rewound, Spiked, StepsDone, TrialStarted, Warned
from bkray.report.stability import write_artifacts
from bkray.sinks.mlflow import MlflowView, Tracking, embedded_store
from bkray.sinks.mlflow_store import sole_writer
from bkray.sinks.mlflow_sync import Synced, sync_sweep

N_STEPS = 64


@pytest.fixture(autouse=True)
def _no_server_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return embedded_store(tmp_path_factory.mktemp("runs"))


def said(trial_id: str, seed: int = 0, act_lambda: float = 0.01) -> list[Event]:
    """What a trial says that spikes, rewinds, warns and ends well."""
    config = {**started().config, "model.act_lambda": act_lambda, "seed": seed}
    windows: list[Event] = [
        replace(
            window(step, loss=seed + 1 / step),
            block_norms={"blocks.0": (1.0,) * 15 + (1 / step,)},
            activations={"blocks.0": float(step)},
            masked=(step - 3,) if step == 32 else (),
        )
        for step in range(16, N_STEPS + 1, 16)
    ]
    return [
        started(trial_id, seed=seed, config=config),
        *windows[:3],
        Spiked(step=44, ratio=2.5),
        Rewound(step=48, to_step=32),
        Warned(step=48, message="that was close"),
        *windows[2:],
        evaluation(N_STEPS),
        MemoryPeak(step=N_STEPS, peak_mib=64.0),
        ended(N_STEPS),
    ]


TRIALS = {f"t{i}": said(f"t{i}", act_lambda=(i + 1) / 10) for i in range(3)}


def sync(folder: Path, tracking: Tracking, told: list[str] | None = None) -> Synced:
    report = folder / "report.html"
    report.write_text("<h1>Report</h1>")
    warn = (told if told is not None else []).append
    return sync_sweep(folder, tracking, artifacts=write_artifacts, report=[report], warn=warn)


def show_live(folder: Path, tracking: Tracking, trials: dict[str, list[Event]]) -> None:
    meta = {"preset": "smoke", "git_sha": "abc123"}
    view = MlflowView(
        tracking, "act", folder.name, meta, SWEPT, folder=folder, artifacts=write_artifacts
    )
    for trial_id, events in trials.items():
        sink = view.trial(trial_id)
        for event in events:
            sink(event)
        sink.close()
    view.attach([folder / "sweep.json"])
    view.close()


def without_times(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What two stores that saw the same trials share; a sweep's load and report are its own."""
    trials = {name: dict(run) for name, run in found.items() if run["level"] != "sweep"}
    for run in trials.values():
        run["points"] = {k: {(s, v) for s, v, _ in told} for k, told in run["points"].items()}
    return trials


def test_a_sweep_arrives_whole_and_a_second_time_nothing_changes(
    tracking: Tracking, tmp_path: Path
) -> None:
    folder = keep_sweep(tmp_path / "whole", TRIALS)
    first = sync(folder, tracking)
    found = stored(tracking, "whole")
    assert (first.n_trials, first.n_refused) == (3, 0)
    assert first.n_points == sum(map(len, points(tracking, "whole").values()))
    assert sync(folder, tracking).n_points == 0
    assert stored(tracking, "whole") == found
    trial = found["thr=0.95 lam=0.1 seed=0"]
    assert [s for s, _, _ in trial["points"]["train/loss_nats"]] == [16, 32, 48, 64]
    assert trial["points"]["stability/masked"][0][:2] == (29, 1.0)
    assert trial["tags"]["warnings"] == "that was close"
    assert trial["datasets"] == [("stdlib", "f" * 36)]
    assert trial["files"] == [
        "config.json",
        *(f"stability/{name}.json" for name in ("gradient_norms", "spikes")),
        *("stability/stability.png", "stability/summary.json"),
    ]
    assert found["whole"]["files"] == ["report.html"]
    assert {run["status"] for run in found.values()} == {"FINISHED"}
    assert not any(key.startswith("system/cpu") for key in found["whole"]["points"])


def test_an_upload_shows_what_a_view_had_shown(tracking: Tracking, tmp_path: Path) -> None:
    live, later = (keep_sweep(tmp_path / name, TRIALS) for name in ("live", "later"))
    show_live(live, tracking, TRIALS)
    sync(later, tracking)
    seen, uploaded = stored(tracking, "live"), stored(tracking, "later")
    for run in (*seen.values(), *uploaded.values()):
        assert run["tags"].pop("sweep_run") in ("live", "later")
    assert without_times(uploaded) == without_times(seen)
    before = stored(tracking, "live")
    assert sync(live, tracking).n_points == 0
    assert without_times(stored(tracking, "live")) == without_times(before)
    assert {k: len(v) for k, v in points(tracking, "live").items()} == {
        (name, key): len(told)
        for name, run in before.items()
        if run["level"] != "sweep"
        for key, told in run["points"].items()
    }


def test_points_are_dated_by_the_files_they_were_in(tracking: Tracking, tmp_path: Path) -> None:
    folder = keep_sweep(tmp_path / "dated", {"t0": TRIALS["t0"]})
    for path in folder.rglob("*.*"):
        os.utime(path, (1_000_000, 1_000_000))
    sync(folder, tracking)
    told = stored(tracking, "dated")["thr=0.95 lam=0.1 seed=0"]["points"]
    assert {ms for some in told.values() for _, _, ms in some} == {1_000_000_000}


@pytest.mark.parametrize("kept", [(16, 64), (64,), (16, 32), (32,), ()])
def test_gaps_in_the_middle_are_filled(
    tracking: Tracking, tmp_path: Path, kept: tuple[int, ...]
) -> None:
    name = f"gaps-{'-'.join(map(str, kept))}"
    folder = keep_sweep(tmp_path / name, TRIALS)
    there = {
        trial_id: [
            event
            for event in events
            if isinstance(event, TrialStarted)
            or (isinstance(event, StepsDone) and event.step in kept)
        ]
        for trial_id, events in TRIALS.items()
    }
    show_live(folder, tracking, there)  # of each trial some windows, and then its driver is gone
    whole = keep_sweep(tmp_path / f"{name}-whole", TRIALS)
    sync(whole, tracking)
    sync(folder, tracking)
    assert points(tracking, name) == {
        key: sorted(set(told)) for key, told in points(tracking, f"{name}-whole").items()
    }
    outcomes = {run["outcome"] for run in stored(tracking, name).values()}
    assert outcomes == {"ok", None}


def test_a_killed_trial_that_went_on_elsewhere_is_made_whole(
    tracking: Tracking, tmp_path: Path
) -> None:
    """The view was told up to step 16, the checkpoint is of step 32, the resumed one goes on."""
    events = said("t0")
    folder = keep_sweep(tmp_path / "resumed", {"t0": events[:3]})
    show_live(folder, tracking, {"t0": events[:2]})
    again = started("t0", attempt=2, step=32, seed=0, config=events[0].config)  # type: ignore[union-attr]
    rest: list[Event] = [again, window(48), window(64), ended(64)]
    keep_sweep(folder, {"t0": rest})
    show_live(folder, tracking, {"t0": rest})
    [key] = [k for k in points(tracking, "resumed") if k[1] == "train/loss_nats"]
    assert [step for step, _ in points(tracking, "resumed")[key]] == [16, 48, 64]
    assert sync(folder, tracking).n_points > 0
    assert [step for step, _ in points(tracking, "resumed")[key]] == [16, 32, 48, 64]
    assert sync(folder, tracking).n_points == 0


def test_a_running_sweep_is_interrupted_until_it_has_ended(
    tracking: Tracking, tmp_path: Path
) -> None:
    events = said("t1", act_lambda=0.2)
    folder = keep_sweep(tmp_path / "runs", {"t0": said("t0"), "t1": events[:3]})
    sync(folder, tracking)
    outcomes = sorted(run["outcome"] or "" for run in stored(tracking, "runs").values())
    assert outcomes == ["", "interrupted", "ok"]
    assert stored(tracking, "runs")["runs"]["status"] == "KILLED"
    again = replace(events[0], attempt=2, step=32)  # type: ignore[type-var]
    keep_sweep(folder, {"t0": [], "t1": [again, *events[6:]]})
    sync(folder, tracking)
    found = stored(tracking, "runs")
    assert sorted(run["outcome"] or "" for run in found.values()) == ["", "ok", "ok"]
    assert found["runs"]["status"] == "FINISHED"
    assert sync(folder, tracking).n_points == 0


def test_seeds_and_their_means_arrive_once(tracking: Tracking, tmp_path: Path) -> None:
    trials = {
        f"{lam}-{seed}": said(f"{lam}-{seed}", seed, lam) for lam in (0.1, 0.2) for seed in (0, 1)
    }
    folder = keep_sweep(tmp_path / "seeds", trials, seeds=2)
    sync(folder, tracking)
    found = stored(tracking, "seeds")
    levels = sorted(run["level"] for run in found.values())
    assert levels == ["configuration"] * 2 + ["seed"] * 4 + ["sweep"]
    assert found["thr=0.95 lam=0.1"]["latest"]["best/val_loss_nats"] == 1.5
    sync(folder, tracking)
    assert stored(tracking, "seeds") == found


def test_a_seed_that_was_interrupted_counts_once_it_has_ended(
    tracking: Tracking, tmp_path: Path
) -> None:
    trials = {"s0": said("s0", 0, 0.3), "s1": said("s1", 1, 0.3)}
    folder = keep_sweep(tmp_path / "half", {"s0": trials["s0"], "s1": trials["s1"][:2]}, seeds=2)
    sync(folder, tracking)
    assert stored(tracking, "half")["thr=0.95 lam=0.3"]["latest"] == {"n": 1, "n_diverged": 0}
    again = replace(trials["s1"][0], attempt=2, step=16)  # type: ignore[type-var]
    keep_sweep(folder, {"s0": [], "s1": [again, *trials["s1"][2:]]}, seeds=2)
    sync(folder, tracking)
    found = stored(tracking, "half")["thr=0.95 lam=0.3"]
    assert (found["latest"]["n"], found["latest"]["best/val_loss_nats"]) == (2, 1.5)
    sync(folder, tracking)
    assert stored(tracking, "half")["thr=0.95 lam=0.3"] == found


def test_who_writes_the_sweep_by_himself_is_not_disturbed(
    tracking: Tracking, tmp_path: Path
) -> None:
    folder = keep_sweep(tmp_path / "busy", TRIALS)
    with sole_writer(folder, tracking, wait=True) as alone:
        assert alone
        with pytest.raises(TrackingError, match="another process: run this again"):
            sync(folder, tracking)
        with sole_writer(folder, Tracking("http://elsewhere", None), wait=False) as other:
            assert other  # another store is another matter
    assert sync(folder, tracking).n_trials == 3


def test_the_command_uploads_and_says_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bkray.cli.sync import mlflow_sync

    runs = tmp_path / "runs"
    folder = keep_sweep(runs / "asked", TRIALS, runs=str(runs))
    assert mlflow_sync(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 trials; ")
    assert "bkray ui --runs" in lines[1]
    assert mlflow_sync(folder, runs, as_json=True) == 0
    assert '"points": 0' in capsys.readouterr().out
    found = stored(embedded_store(runs), "asked")
    assert {"report.html", "figures/outcomes.png"} <= set(found["asked"]["files"])


@pytest.fixture(scope="module")
def served_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    runs = tmp_path_factory.mktemp("served")
    embedded_store(runs)
    yield runs


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_of_an_upload_costs_nothing(
    served_runs: Path, tmp_path: Path
) -> None:
    """It is lost again and again, each time some requests further, and with it its last answer."""
    folder = keep_sweep(tmp_path / "dies", TRIALS)
    n_uploads = 0
    with served(served_runs, tmp_path / "server.log") as address:
        for limit in (3, 9, 17, 33, 1000):
            with slowed(address, 0.0, dies_after=limit) as server:
                try:
                    sync(folder, Tracking(server.address, None))
                    n_uploads += 1
                except TrackingError as error:
                    assert "nothing will be doubled" in str(error)
    assert n_uploads == 1
    whole = keep_sweep(tmp_path / "lives", TRIALS)
    with served(served_runs, tmp_path / "server.log") as address:
        tracking = Tracking(address, None)
        assert sync(folder, tracking).n_points == 0
        sync(whole, tracking)
        assert points(tracking, "dies") == points(tracking, "lives")
        seen, other = stored(tracking, "dies"), stored(tracking, "lives")
        assert {n: r["files"] for n, r in seen.items() if n != "dies"} == {
            n: r["files"] for n, r in other.items() if n != "lives"
        }


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_of_a_sweep_gets_the_rest_later(
    served_runs: Path, tmp_path: Path
) -> None:
    folder = keep_sweep(tmp_path / "cut off", TRIALS)
    told: list[str] = []
    with (
        served(served_runs, tmp_path / "server.log") as address,
        slowed(address, 0.0, dies_after=12) as server,
    ):
        view = MlflowView(
            Tracking(server.address, None),
            "act",
            folder.name,
            {},
            SWEPT,
            folder=folder,
            warn=told.append,
        )
        for trial_id, events in TRIALS.items():
            sink = view.trial(trial_id)
            for event in events:
                sink(event)
            sink.close()
        view.close()
    assert len(told) == 2  # at the first failure and at the end
    assert all(f"bkray mlflow-sync '{folder}'" in line for line in told)
    with served(served_runs, tmp_path / "server.log") as address:
        tracking = Tracking(address, None)
        assert len(stored(tracking, "cut_off")) < 4
        sync(folder, tracking)
        whole = keep_sweep(tmp_path / "undisturbed", TRIALS)
        sync(whole, tracking)
        assert {key: set(told) for key, told in points(tracking, "cut_off").items()} == {
            key: set(told) for key, told in points(tracking, "undisturbed").items()
        }
        assert sync(folder, tracking).n_points == 0
