"""The folder of a sweep: whether it may be used, by whom, and what is left there."""

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bkray.cluster import record, study
from bkray.cluster.carriers import DRIVER, ORPHAN_SECONDS
from bkray.cluster.locks import HeldElsewhereError, held
from bkray.errors import ConfigError, ResumeError

_WORKERS = ("events", "checkpoints", "forensics")  # folders of a trial that its worker writes


def check(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """Return what the sweep to be resumed says of itself; ``None`` for a new one.

    Raises:
        ConfigError: the folder is a file.
        ResumeError: it holds a sweep although it should not, or none although it should.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the output folder {folder} is a file: give another --out")
    if resume:
        return record.read(folder)
    if (folder / record.NAME).exists() or (folder / study.NAME).exists():
        raise ResumeError(
            f"{folder} already holds a sweep: go on with it by bkray resume {folder}, or give "
            "another --out"
        )
    return None


@contextmanager
def claimed(folder: Path, token: str, *, resume: bool) -> Iterator[dict[str, Any] | None]:
    """Be the only driver of the sweep in the folder, which is made; yield what ``check`` returns.

    What a killed driver and its trials left is removed. An error takes away what was made if no
    trial was begun.

    Raises:
        ConfigError, ResumeError: as ``check`` does; or another process runs the sweep.
    """
    found = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with held(folder / DRIVER, token):
            stored = check(folder, resume=resume)
            _wait_for_orphans(folder)
            _clear(folder)
            (folder / "trials").mkdir(exist_ok=True)
            try:
                yield stored
                # A worker that was killed leaves what it was about to write; views still write.
                _clear(folder, written_by=_WORKERS)
            except BaseException:
                if stored is None:
                    _unmake(folder)
                raise
    except HeldElsewhereError:
        raise ResumeError(
            f"a sweep runs in {folder}: wait for its end, or end its process"
        ) from None
    finally:
        if not found:
            with suppress(OSError):  # it is in use
                folder.rmdir()


def _wait_for_orphans(folder: Path) -> None:
    """Wait for trials of a killed driver, which end when they find another one in charge."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    for lock in folder.glob("trials/*/.lock"):
        left = max(0.0, deadline - time.monotonic())
        with suppress(HeldElsewhereError), held(lock, patience_seconds=left):
            pass


def _clear(folder: Path, written_by: Iterable[str] = ("*",)) -> None:
    """Remove scratch folders, and half-written files of these folders of every trial."""
    for name in (".tune", ".train"):
        for scratch in (folder / name, *folder.glob(f"trials/*/{name}")):
            shutil.rmtree(scratch, ignore_errors=True)
    half_written = [f"trials/*/{name}/*.tmp" for name in written_by]
    for pattern in ("*.tmp", "trials/*/*.tmp", *half_written, "trials/*/.stop"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _unmake(folder: Path) -> None:
    with suppress(OSError):  # a trial was begun
        (folder / "trials").rmdir()
        for name in (record.NAME, study.NAME, study.ELSEWHERE):
            (folder / name).unlink(missing_ok=True)
