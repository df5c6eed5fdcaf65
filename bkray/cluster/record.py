"""``sweep.json``: what was run, on which code, versions, machine and data; and whether what is to
be resumed is still the same."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bkray
from bkray.cluster.search import Search
from bkray.cluster.session import cores
from bkray.errors import ResumeError

NAME = "sweep.json"

_FIXED = (
    *("bkray", "name", "base", "overrides", "objectives", "space", "first", "rivals"),
    *("sampler", "seed", "seeds", "data_hash"),
)
"""What decides the trials of a sweep, and so may not change before it is resumed."""
_OF_THE_START = ("started", "git", "python", "versions", "hardware")
_PACKAGES = ("torch", "ray", "optuna", "numba", "numpy", "pyarrow", "mlflow", "pydantic")


def describe(search: Search, *, data_hash: str) -> dict[str, Any]:
    """Return the resolved sweep; options of the run (concurrency, budget, ...) come on top."""
    sweep = search.sweep
    return {
        "name": sweep.name,
        "overview": sweep.overview,
        "base": search.base,
        "overrides": search.pinned,
        "objectives": [dataclasses.asdict(objective) for objective in sweep.objectives],
        "swept": search.swept(),
        "first": list(sweep.first),
        "space": search.described(),
        "arms": [rival.arm for rival in search.rivals()],
        "rivals": {rival.arm: rival.overrides for rival in search.rivals()},
        "sampler": search.sampler,
        "seed": search.seed,
        "trials": search.n_trials,
        "seeds": search.seeds,
        "data_hash": data_hash,
        "started": now(),
        "resumed": [],
        "bkray": bkray.__version__,
        "git": git_state(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "hardware": {
            "platform": platform.platform(),
            "cpu_cores": cores(),
            "memory_mib": _memory_mib(),
        },
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(folder: Path) -> dict[str, Any]:
    """Return what ``sweep.json`` says.

    Raises:
        ResumeError: the folder holds no sweep.
    """
    path = folder / NAME
    if not path.is_file():
        raise ResumeError(
            f"{folder} holds no sweep: {NAME} is missing; give a folder like runs/act/<date-name>"
        )
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return said


def resumed(folder: Path, stored: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``sweep.json`` says of a sweep that is resumed: ``present``, but as begun once.

    Raises:
        ResumeError: what decides the trials has changed; the message shows the differences.
    """
    plain = json.loads(json.dumps(present))
    found = [
        f"{where} was {_words(before)}, is {_words(after)}"
        for key in _FIXED
        for where, before, after in _differences(key, stored.get(key), plain.get(key))
    ]
    if found:
        raise ResumeError(
            f"{folder} cannot be resumed, its sweep has changed: {'; '.join(found)}; change it "
            "back, or start a new sweep"
        )
    begun = {key: stored[key] for key in _OF_THE_START}
    return {**present, **begun, "resumed": [*stored["resumed"], now()]}


def _differences(where: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from _differences(f"{where} {key}", before.get(key), after.get(key))
    elif before != after:
        yield where, before, after


def _words(value: Any) -> str:
    return "absent" if value is None else value if isinstance(value, str) else json.dumps(value)


def git_state(folder: Path = Path(bkray.__file__).parent) -> dict[str, Any] | None:
    """Return commit and whether files differ from it; ``None`` without a checkout or git."""
    try:
        sha = _git_says(folder, "rev-parse", "HEAD").strip()
        return {"sha": sha, "dirty": bool(_git_says(folder, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git_says(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
