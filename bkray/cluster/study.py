"""The searcher's memory on disk: the Optuna study of a sweep, in ``study.db``."""

from pathlib import Path

import optuna
from optuna.storages import RDBStorage

from bkray import atomic
from bkray.errors import ResumeError
from bkray.sweep import Sweep

NAME = "study.db"


def open_study(folder: Path | None, sweep: Sweep) -> tuple[RDBStorage, optuna.Study]:
    """Open the study of the folder, or create it; without a folder it is kept in memory.

    Optuna writes tables and indices one by one, and takes a database without some of them for a
    whole one. So a new file gets its name when all is there: a killed process leaves no half.

    Raises:
        ResumeError: the file holds a study with other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if folder is None:
        storage = RDBStorage("sqlite://")
        return storage, _study(storage, sweep)
    path = folder / NAME
    if not path.exists():
        with atomic.replace(path) as new:
            storage = _storage(new)
            _study(storage, sweep)
            storage.engine.dispose()
    storage = _storage(path)
    return storage, _study(storage, sweep)


def _storage(path: Path) -> RDBStorage:
    braces = str(path).replace("{", "{{").replace("}", "}}")  # optuna formats it
    return RDBStorage(f"sqlite:///{braces}")


def _study(storage: RDBStorage, sweep: Sweep) -> optuna.Study:
    study = optuna.create_study(
        storage=storage,
        study_name=sweep.name,
        directions=[objective.direction for objective in sweep.objectives],
        load_if_exists=True,
    )
    asked = [objective.direction for objective in sweep.objectives]
    stored = [direction.name.lower() for direction in study.directions]
    if stored != asked:
        raise ResumeError(
            f"study.db was written with objectives {stored}, the sweep now says {asked}: "
            "start it in a new folder"
        )
    return study
