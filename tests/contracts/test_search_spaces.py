"""Every search space and every sweep that ships: names, ranges and points must hold together."""

import importlib
import itertools
import pkgutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

import search_spaces
from bkray.cluster.ledger import Ledger
from bkray.cluster.search import Search
from bkray.cluster.tuner import SweepOptions, planned, resolve
from bkray.overrides import config_paths
from bkray.sweep import Space, Sweep
from sweeps.load import load, names

SWEEPS = [(name, preset) for name in names() for preset in load(name).presets]


def spaces() -> list[Space]:
    modules = [
        importlib.import_module(f"search_spaces.{found.name}")
        for found in pkgutil.iter_modules(search_spaces.__path__)
    ]
    return [
        value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("suggest")
    ]


@pytest.mark.parametrize("space", spaces(), ids=lambda s: f"{s.__module__}.{s.__name__}")
def test_names_are_config_paths(space: Space) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        trial = study.ask()
        returned = space(trial)
        assert trial.params or returned
        known = config_paths()
        assert set(trial.params) | set(returned) <= set(known)


def test_search_spaces_and_sweeps_need_no_heavy_library() -> None:
    imports = "; ".join(
        [
            f"import search_spaces.{found.name}"
            for found in pkgutil.iter_modules(search_spaces.__path__)
        ]
        + [f"import sweeps.{name}" for name in names()]
    )
    program = (
        f"import sys; {imports}; print({{'ray', 'optuna', 'torch', 'mlflow'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(("name", "preset"), SWEEPS)
def test_every_preset_proposes_valid_configs(name: str, preset: str, tmp_path: Path) -> None:
    search = resolve(load(name), SweepOptions(out=tmp_path, preset=preset))
    ledger = Ledger(tmp_path, search)
    proposals = list(itertools.islice(iter(ledger.ask, None), 40))
    ledger.close()
    assert len(proposals) == min(40, search.n_configurations)
    assert len({p.config for p in proposals if p.arm}) == len(search.rivals())


@pytest.mark.parametrize(("name", "preset"), SWEEPS)
def test_first_points_ask_only_for_what_is_searched(name: str, preset: str) -> None:
    sweep = load(name)
    search: Search = resolve(sweep, SweepOptions(out=Path("none"), preset=preset))
    assert {path for point in sweep.first for path in point} <= set(search.swept())


@pytest.mark.parametrize("name", names())
def test_objectives_name_a_direction_once(name: str) -> None:
    sweep: Sweep = load(name)
    columns = [objective.column for objective in sweep.objectives]
    assert columns
    assert len(set(columns)) == len(columns)


@pytest.mark.parametrize(("name", "preset"), SWEEPS)
def test_a_dry_run_needs_no_folder(name: str, preset: str, tmp_path: Path) -> None:
    assert planned(load(name), SweepOptions(out=tmp_path / "none", preset=preset))
    assert not (tmp_path / "none").exists()
