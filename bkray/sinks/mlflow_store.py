"""Finds the MLflow store: the server that ``MLFLOW_TRACKING_URI`` names, or an embedded one.

mlflow is imported on first use, not with this module: it takes a second.
"""

import fcntl
import hashlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bkray import atomic
from bkray.errors import TrackingError
from bkray.sinks.addresses import without_password

_ANSWER_SECONDS = 15.0  # for a store that neither answers nor refuses
_CREATION_SECONDS = 120.0  # mlflow makes a new database by dozens of migrations, on a busy machine
_NAME = "mlflow.db"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # requests are repeated by us: who repeats the creation of a run must look for it first
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # the server's job runner is for features bkray does not use: two processes less
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@dataclass(frozen=True, slots=True)
class Tracking:
    """A store that answered. ``artifacts`` of new experiments; ``None`` lets the server choose."""

    uri: str
    artifacts: str | None

    @property
    def shown(self) -> str:
        """The address as others may see it, without a password."""
        return without_password(self.uri)


def open_store(runs_dir: Path) -> Tracking:
    """Return the store of ``MLFLOW_TRACKING_URI`` if that is set, else the one in ``runs_dir``.

    Raises:
        TrackingError: the server does not answer within seconds, or the database cannot be used.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return embedded_store(runs_dir)
    _be_quiet()
    advice = f"unset MLFLOW_TRACKING_URI to use {_database(runs_dir)}"
    _ask(given, f"start that server, correct the address, or {advice}", _ANSWER_SECONDS)
    return Tracking(given, None)


def embedded_store(runs_dir: Path) -> Tracking:
    """Return the store in ``runs_dir``: ``mlflow.db`` with ``mlflow-artifacts/``.

    It is created if need be, behind a lock: several processes may call this at once.

    Raises:
        TrackingError: the database cannot be used.
    """
    _be_quiet()
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        with _alone(runs_dir / ".mlflow.lock"):
            advice = "give another output folder, or move that file away"
            if not (runs_dir / _NAME).exists():
                _create(runs_dir, advice)
            _ask(_database(runs_dir), advice, _ANSWER_SECONDS)
    except OSError as error:
        raise TrackingError(f"no MLflow store can be made in {runs_dir}: {error}") from error
    return Tracking(_database(runs_dir), (runs_dir.absolute() / "mlflow-artifacts").as_uri())


@contextmanager
def sole_writer(sweep_dir: Path, tracking: Tracking, *, wait: bool) -> Iterator[bool]:
    """Yield whether no other process of this machine writes this sweep to this store.

    Two would make the same runs twice. With ``wait`` the other one is waited for; it lets go when
    it ends, however it ends.
    """
    store = hashlib.sha256(tracking.uri.rstrip("/").encode()).hexdigest()[:8]
    with (sweep_dir / f".mlflow-{store}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def ui_command(runs_dir: Path, port: int) -> list[str]:
    """Return the command that serves the embedded store to this machine alone.

    Run it with ``ui_environment``; it answers at ``ui_address``.
    """
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", _database(runs_dir)),
        *("--artifacts-destination", str(runs_dir.absolute() / "mlflow-artifacts")),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def ui_environment() -> dict[str, str]:
    """Return the environment for ``ui_command``: no telemetry and no job runner."""
    return _ENVIRONMENT | dict(os.environ)


def ui_address(port: int) -> str:
    """Return where the browser finds ``ui_command``."""
    return f"http://127.0.0.1:{port}"


def _database(runs_dir: Path) -> str:
    return f"sqlite:///{runs_dir.absolute() / _NAME}"


def _create(runs_dir: Path, advice: str) -> None:
    """Make the database under another name: a process killed at a migration leaves no half."""
    for left in runs_dir.glob(f"{_NAME}.*"):
        left.unlink()
    with atomic.replace(runs_dir.absolute() / _NAME) as new:
        _ask(f"sqlite:///{new}", advice, _CREATION_SECONDS)
        _remove_default_experiment(f"sqlite:///{new}")


def _be_quiet() -> None:
    """Keep mlflow's chatter from the user; what fails is raised, and told by us."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _without_deprecations():
        import mlflow  # noqa: F401 (its own set-up of loggers must come before ours)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _ask(uri: str, advice: str, seconds: float) -> None:
    """List one experiment; in a thread, for a database client may retry for minutes."""
    failures: list[Exception] = []
    thread = threading.Thread(target=_list_one, args=(uri, failures.append), daemon=True)
    with _without_deprecations():
        thread.start()
        thread.join(seconds)
    shown = without_password(uri)
    if thread.is_alive():
        raise TrackingError(
            f"the MLflow store {shown} gave no answer in {seconds:.0f} s to a request for "
            f"its experiments: {advice}"
        )
    if failures:
        raise TrackingError(
            f"the MLflow store {shown} did not answer a request for its experiments: {advice} "
            f"({first_line(failures[0])})"
        ) from failures[0]


def _list_one(uri: str, fail: Callable[[Exception], None]) -> None:
    from mlflow import MlflowClient

    try:
        MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # raised again by the thread that asks
        fail(error)


def _remove_default_experiment(uri: str) -> None:
    """Delete the experiment that mlflow puts into each new store, if nobody uses it."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    client = MlflowClient(uri)
    default = client.get_experiment_by_name("Default")
    if default is None or default.lifecycle_stage == "deleted":
        return
    place = [default.experiment_id]
    runs = client.search_runs(place, run_view_type=ViewType.ALL, max_results=1)
    if not runs and not default.tags:
        client.delete_experiment(default.experiment_id)


def first_line(error: Exception) -> str:
    """Return what to tell of an error, which with mlflow may hold a traceback and a password."""
    return without_password((str(error).strip() or repr(error)).splitlines()[0])


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Hide what mlflow's own imports say about the libraries below it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
