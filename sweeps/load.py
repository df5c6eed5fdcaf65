"""Finds a sweep: one of ours by name, or the ``SWEEP`` of a user's own file."""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import sweeps
from bkray.errors import ConfigError
from bkray.sweep import Sweep


def load(name: str, *, frontier: bool = False) -> Sweep:
    """Return the sweep called ``name``, or the one in the file ``name`` when it ends in ``.py``;
    with ``frontier`` its variant that sweeps a knob at inference.

    The folder of a user's file goes on the import path, so that a model beside it is found.

    Raises:
        ConfigError: no such sweep or file, the file holds no ``SWEEP``, or it has no variant.
    """
    module = _from_file(Path(name)) if name.endswith(".py") else _shipped(name)
    sweep = getattr(module, "SWEEP", None)
    if not isinstance(sweep, Sweep):
        raise ConfigError(
            f"{name} holds no sweep: it must say SWEEP = bkray.sweep.Sweep(...), got {sweep!r}"
        )
    if not frontier:
        return sweep
    if sweep.frontier is None:
        known = ", ".join(other for other in names() if load(other).frontier is not None)
        raise ConfigError(
            f"--frontier: the sweep {name} has no knob that is swept at inference; such sweeps "
            f"are: {known}"
        )
    return sweep.frontier


def names() -> list[str]:
    """Return the names of the sweeps that come with bkray."""
    return [found.name for found in pkgutil.iter_modules(sweeps.__path__) if found.name != "load"]


def _shipped(name: str) -> ModuleType:
    if name not in names():
        raise ConfigError(
            f"unknown sweep {name!r}: known are {', '.join(names())}; "
            "a sweep of your own is given as its file, my_sweep.py"
        )
    return importlib.import_module(f"sweeps.{name}")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"the sweep file {path} does not exist")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"the sweep file {path} fails: {type(error).__name__}: {error}"
        ) from error
    return module
