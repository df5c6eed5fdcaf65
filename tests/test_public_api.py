"""What ``import bkray`` offers, and what it must not load."""

import json
import subprocess
import sys

import pytest

import bkray

NAMES = [
    "Arm",
    "BkrayError",
    "ConfigError",
    "DataError",
    "Objective",
    "Preset",
    "ResumeError",
    "Sweep",
    "TrackingError",
    "TrialConfig",
    "build",
]
HEAVY = {"torch", "ray", "mlflow", "optuna", "numba", "pyarrow", "pandas", "scipy", "numpy"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(list(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(ended.stdout)}


def test_the_public_names_are_these() -> None:
    modules = {name for name in vars(bkray) if f"bkray.{name}" in sys.modules}
    public = {name for name in vars(bkray) if not name.startswith("_")} - modules
    assert sorted(public) == NAMES


def test_importing_bkray_loads_nothing_heavy() -> None:
    assert not loaded_by("import bkray") & HEAVY


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("bkray.sweep", HEAVY),
        ("bkray.stability", HEAVY),
        ("search_spaces.act, sweeps.act", HEAVY),
        ("bkray.report.tables", {"torch", "ray", "mlflow"}),
        ("bkray.trial", {"ray", "mlflow", "optuna", "scipy"}),
        ("bkray.cluster.tune_carrier", {"mlflow", "scipy"}),
    ],
)
def test_a_floor_loads_only_what_is_its_own(module: str, forbidden: set[str]) -> None:
    assert not loaded_by(f"import {module}") & forbidden


def test_every_error_of_ours_is_a_bkray_error() -> None:
    ours = (bkray.ConfigError, bkray.DataError, bkray.ResumeError, bkray.TrackingError)
    assert all(issubclass(error, bkray.BkrayError) for error in ours)
    assert issubclass(bkray.ConfigError, ValueError)
    assert issubclass(bkray.DataError, ValueError)


def test_a_sweep_is_a_value_without_rivals_unless_told() -> None:
    sweep = bkray.Sweep(
        name="mine",
        space=lambda trial: {},
        objectives=(bkray.Objective(column="best_val_loss_nats", direction="minimize"),),
        presets={"smoke": bkray.Preset(trials=1)},
    )
    assert sweep.rivals({"model.n_layers": 4}) == ()
    with pytest.raises(AttributeError):
        sweep.name = "other"  # type: ignore[misc]
