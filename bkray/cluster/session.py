"""A silent Ray session: started on this machine, or joined at an address, and left as found.

Ray is imported here and in the ``tune_*`` and ``ray_*`` files, and only once a sweep asks for it.
"""

import importlib
import logging
import os
import secrets
import site
import socket
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bkray.errors import ConfigError

_SILENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of corpora mean the same in every process
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # else the raylet speaks on our standard output
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how late the end of a trial is seen
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",  # on a shared cluster trials wait
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets trials end by themselves
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # study.db is the memory of a sweep
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # jobs are handed out when there is room, not earlier
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # outcome.json and the views say it
    "TUNE_WARN_THRESHOLD_S": "60",
}
ACCELERATOR = "accelerator_type:"
"""How the resource begins of which each node with such a GPU has one."""
SLOT = "slot"
"""The custom resource that admits trials of Ray Train; every node has one for each core."""

_OBJECT_STORE_BYTES = 256 * 2**20
"""Room for events in flight; Ray's default takes a third of the machine's memory."""


def cores() -> int:
    """Return the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def places(
    *, threads: int, n_trials: int, asked: int | None, n_cores: int, workers: int = 1
) -> int:
    """Return how many trials run at once.

    Args:
        threads: CPU threads of one worker.
        workers: of one trial.
        n_trials: trials there are to run.
        asked: what the user wants; ``None`` fills the cores.

    Raises:
        ConfigError: more threads than cores.
    """
    if asked is not None and asked < 1:
        raise ConfigError(f"concurrency must be 1 or more, got {asked}")
    needed = (asked or 1) * workers * threads
    if needed > n_cores:
        crew = f" x workers={workers}" if workers > 1 else ""
        raise ConfigError(
            f"concurrency={asked or 1}{crew} x threads={threads} needs {needed} CPU cores, "
            f"there are {n_cores}: lower one of them"
        )
    return max(1, min(asked or n_cores // (workers * threads), n_trials))


@contextmanager
def session(
    *, address: str | None, threads: int, needs: Mapping[str, float] | None = None
) -> Iterator[Any]:
    """Yield the ``ray`` module with a session up; a session that was up before stays up.

    Args:
        address: of a running cluster, or ``auto``; ``None`` starts one on this machine, dashboard
            on the loopback interface.
        threads: for OpenMP and numba in the workers, before anything there is imported.
        needs: what one trial takes of Ray's resources.

    Raises:
        ConfigError: nothing answers at the address, or it has less of a resource now than one
            trial takes: Ray does not say what an autoscaler could bring.
    """
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)
    ray = importlib.import_module("ray")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    ours = not ray.is_initialized()
    if ours:
        if address is None:  # a session of our own, on the loopback interface
            _require_a_token()
        _start(ray, address, threads)
    try:
        check_needs(ray.cluster_resources(), needs or {})
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _require_a_token() -> None:
    """Give a session of our own a token, for Ray's ports listen to the whole network.

    Ray turns to tokens by itself where nobody says otherwise, and warns that it does.
    """
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _knock(address: str) -> None:
    """Raise ``ConfigError`` where nothing listens: Ray itself would ask for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):  # auto: Ray looks for a cluster on this machine
        return
    try:
        socket.create_connection((host, int(port)), _KNOCK_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"nothing listens at address={address} ({error}): {_NO_CLUSTER}"
        ) from None


_KNOCK_SECONDS = 10.0
_TOKEN_NEEDED = (
    "asks for its token: set RAY_AUTH_MODE=token, and have the token in ~/.ray/auth_token, in the "
    "file that RAY_AUTH_TOKEN_PATH names, or in RAY_AUTH_TOKEN"
)
_NO_CLUSTER = "start a Ray cluster there, or leave --address out to use this machine"


def _start(ray: Any, address: str | None, threads: int) -> None:
    if address is not None:
        _knock(address)
    local = {
        "num_cpus": cores(),
        "resources": {SLOT: cores()},
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": worker_environment(threads)},
            **({} if address else local),
        )
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
        refused = ray.exceptions.AuthenticationError
        if isinstance(error, refused) or refused.__name__ in str(error.__cause__):  # as text
            raise ConfigError(f"the Ray cluster at address={address} {_TOKEN_NEEDED}") from None
        # nobody there; no address at all
        raise ConfigError(
            f"no Ray cluster answers at address={address} ({error}): {_NO_CLUSTER}"
        ) from None


def worker_environment(threads: int) -> dict[str, str]:
    """Return what a worker needs to know before it imports: threads, and where our modules are."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "PYTHONPATH": os.pathsep.join(_own_paths())}


def _own_paths() -> list[str]:
    """Return the folders on ``sys.path`` that a fresh interpreter would not have by itself."""
    standard = [Path(path).resolve() for path in sysconfig.get_paths().values()]
    standard += [Path(path).resolve() for path in site.getsitepackages()]
    folders = [Path(path).resolve() for path in sys.path]
    own = [
        folder
        for folder in folders
        if folder.is_dir() and not any(folder.is_relative_to(place) for place in standard)
    ]
    return list(dict.fromkeys(map(str, own)))


_BRING = (
    "where an autoscaler is to bring it, bring one node first: bkray cluster verify "
    "--address auto --gpus 1"
)
_LACKING = {
    "GPU": f"lower --gpus-per-worker or --workers; {_BRING}",
    "memory": f"lower --memory-per-worker; {_BRING}",
    SLOT: (f"start every node with one per core, as in ray start --resources='{{\"{SLOT}\": 8}}'"),
}


def check_needs(present: Mapping[str, float], needs: Mapping[str, float]) -> None:
    """Raise ``ConfigError`` for a resource of which one trial takes more than there is."""
    for name, needed in needs.items():
        if needed <= present.get(name, 0):
            continue
        if name.startswith(ACCELERATOR):
            kinds = [kind.removeprefix(ACCELERATOR) for kind in present if ACCELERATOR in kind]
            asked = name.removeprefix(ACCELERATOR)
            known = f"it has {', '.join(sorted(kinds))}" if kinds else "it names none"
            raise ConfigError(
                f"no node of the cluster has accelerator-type={asked}: {known}; {_BRING}"
            )
        advice = _LACKING.get(name, "lower what a trial takes")
        raise ConfigError(
            f"a trial takes {needed:g} of the resource {name!r}, the cluster has "
            f"{present.get(name, 0):g}: {advice}"
        )
