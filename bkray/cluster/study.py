"""The searcher's memory: the Optuna study of a sweep, in ``study.db`` of its folder, or in the
database that ``OPTUNA_STORAGE`` names when the sweep begins."""

import json
import os
import uuid
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from bkray import atomic
from bkray.errors import ConfigError, ResumeError, UnreachableError
from bkray.sweep import Sweep

NAME = "study.db"
ELSEWHERE = "study.json"
"""In place of ``study.db`` where a database elsewhere holds the study: its name there."""
VARIABLE = "OPTUNA_STORAGE"


def open_study(folder: Path | None, sweep: Sweep) -> tuple[RDBStorage, optuna.Study]:
    """Open the study of the folder, or create it; without a folder it is kept in memory.

    Optuna writes tables and indices one by one, and takes a database without some of them for a
    whole one. So a new file gets its name when all is there: a killed process leaves no half.

    Raises:
        ResumeError: the study has other objectives, or its database is not the one that is named.
        ConfigError, UnreachableError: ``OPTUNA_STORAGE`` names no database, or it does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if folder is None:
        storage = RDBStorage("sqlite://")
        return storage, _study(storage, sweep, sweep.name)
    path = folder / NAME
    if (folder / ELSEWHERE).exists() or (os.environ.get(VARIABLE) and not path.exists()):
        return _elsewhere(folder, sweep)
    if not path.exists():
        with atomic.replace(path) as new:
            storage = _storage(new)
            _study(storage, sweep, sweep.name)
            storage.engine.dispose()
    storage = _storage(path)
    return storage, _study(storage, sweep, sweep.name)


def check_beside_copy(folder: Path, uri: str) -> None:
    """Raise ``ConfigError`` where the study would not be among the files that are copied to a URI.

    It would know of trials that the copy lacks, and who goes on from there would lose them.
    """
    if uri and os.environ.get(VARIABLE) and not (folder / NAME).exists():
        raise ConfigError(
            f"{VARIABLE} does not go with a sweep at {uri}: the study would run ahead of the "
            "copy; unset the variable, or give a folder as --out"
        )


def _elsewhere(folder: Path, sweep: Sweep) -> tuple[RDBStorage, optuna.Study]:
    """Open the study in a database; it has a name of its own, for many sweeps share one."""
    marker, url = folder / ELSEWHERE, os.environ.get(VARIABLE, "")
    said = json.loads(marker.read_text()) if marker.exists() else {}
    if not url:
        raise ResumeError(f"the study of {folder} is in {said['store']}: set {VARIABLE} to it")
    name = said.get("name") or f"{sweep.name}-{uuid.uuid4().hex}"
    try:
        shown = make_url(url).set(query={}).render_as_string(hide_password=True)
        storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        study = _study(storage, sweep, name, begun=bool(said))
    except KeyError:
        raise ResumeError(
            f"{VARIABLE}={shown} does not hold the study {name} of {folder}: set it to the "
            f"database that does, {said['store']}"
        ) from None
    except ImportError as error:
        raise ConfigError(
            f"{VARIABLE} needs {error.name}: install it with pip install 'bkray[postgres]'"
        ) from None
    except ArgumentError:
        raise ConfigError(
            f"{VARIABLE} must be the address of a database, such as postgresql://host/optuna"
        ) from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        said_first = str(error).partition("\n")[0]
        raise UnreachableError(f"{VARIABLE}={shown} does not answer: {said_first}") from None
    if not marker.exists():
        atomic.write_json(marker, {"name": name, "store": shown})
    return storage, study


def _storage(path: Path) -> RDBStorage:
    braces = str(path).replace("{", "{{").replace("}", "}}")  # optuna formats it
    return RDBStorage(f"sqlite:///{braces}")


def _study(storage: RDBStorage, sweep: Sweep, name: str, *, begun: bool = False) -> optuna.Study:
    asked = [objective.direction for objective in sweep.objectives]
    if begun:
        study = optuna.load_study(storage=storage, study_name=name)
    else:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=asked, load_if_exists=True
        )
    stored = [direction.name.lower() for direction in study.directions]
    if stored != asked:
        raise ResumeError(
            f"the study was written with objectives {stored}, the sweep now says {asked}: "
            "start it in a new folder"
        )
    return study
