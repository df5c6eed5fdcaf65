"""A sweep's folder, kept at a URI as well, so that it can go on at another machine.

Trials and driver work in the local folder; a thread copies what has changed. Files are taken in
one order and sent in the opposite one, so that what is there can be resumed at any moment: a
checkpoint never comes before the rows up to it, an outcome never before its checkpoint, and what
the study was told never before the outcome.
"""

import importlib.machinery
import json
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bkray.atomic import write_json
from bkray.cluster import record, study
from bkray.cluster.storage import Storage, unreachable
from bkray.errors import ResumeError
from bkray.train import checkpoint

EVERY_SECONDS = 5.0
PATIENCE_SECONDS = 120.0
"""How long the end of a sweep waits for a place that does not answer."""
_SCRATCH = ".mirror"
_SENT = "sent.json"
_SKIPPED = (".tmp", ".stop", ".lock", ".driver", "-journal", "-wal", "-shm")
_SKIPPED_FOLDERS = {_SCRATCH, ".tune", ".train"}
_FIRST_TRIES = 3
_TRIES = 20
_PROBE = ".writable"
_PROGRAMS = tuple(importlib.machinery.all_suffixes())


class _Taken(NamedTuple):
    """A file as it was at one moment: a second name for it that nothing writes to."""

    name: str
    path: Path
    state: list[int]


class Mirror:
    """Copies ``folder`` to ``storage`` until it is closed.

    Args:
        warn: told once when the place does not answer; the sweep goes on.
    """

    def __init__(
        self,
        folder: Path,
        storage: Storage,
        warn: Callable[[str], None],
        *,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._folder = folder
        self._storage = storage
        self._warn = warn
        self._every_seconds = every_seconds
        self._scratch = folder / _SCRATCH
        self._sent = read_sent(folder)
        self._warned = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def start(self, there: Collection[str] | None = None) -> None:
        """Begin; of the files that were sent before, those that are not ``there`` go again."""
        for left in self._scratch.glob("*"):  # by a driver that was killed
            if left.name != _SENT:
                left.unlink()
        if there is not None:
            self._sent = {name: state for name, state in self._sent.items() if name in there}
        self._thread.start()

    def close(self, patience_seconds: float = PATIENCE_SECONDS) -> bool:
        """Send what is left; return whether all of it is there."""
        self._closing.set()
        self._thread.join()
        deadline = time.monotonic() + patience_seconds
        while not (done := self._tried()) and time.monotonic() < deadline:
            time.sleep(min(self._every_seconds, 1.0))
        return done

    def send(self) -> None:
        """Send all that has changed.

        Raises:
            OSError: the place does not answer, or files do not stay long enough to be taken; what
                was sent before is whole.
        """
        if not self._folder.exists():  # nothing has begun
            return
        self._scratch.mkdir(exist_ok=True)
        taken: list[_Taken] = []
        try:
            for _ in range(_TRIES):
                if (gone := self._take_changes(taken)) is not None:
                    break
                _release(taken)
            else:
                raise OSError(f"files of {self._folder} move while they are copied")
            for one in reversed(taken):
                self._storage.put(one.path, one.name)
                self._sent[one.name] = one.state
            for name in gone:
                self._storage.delete(name)
                del self._sent[name]
        finally:
            write_json(self._scratch / _SENT, self._sent)
            _release(taken)

    def _work(self) -> None:
        while not self._closing.wait(self._every_seconds):
            self._tried()

    def _tried(self) -> bool:
        try:
            self.send()
        except OSError as error:
            if not self._warned:
                said = unreachable(self._storage, error)
                self._warn(f"{said}; the sweep goes on in {self._folder} and tries again")
            self._warned = True
            return False
        return True

    def _take_changes(self, taken: list[_Taken]) -> set[str] | None:
        """Add to ``taken`` what has changed; return what was sent before and is gone now.

        Each rank is listed when all that may refer to it is taken. ``None`` where a file moved
        meanwhile: under its new name it may not be taken yet, so all must be taken anew.
        """
        present: set[str] = set()
        try:
            for rank in reversed(range(_RANKS)):
                names = self._names(rank)
                present.update(names)
                for name in names:
                    if self._sent.get(name) != _state(self._folder / name):
                        taken.append(self._take(name))
        except FileNotFoundError:
            return None
        return self._sent.keys() - present

    def _names(self, rank: int) -> list[str]:
        """Return the files of the sweep that have this rank; links are none of them."""
        found = []
        for parent, folders, files in os.walk(self._folder):
            folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
            below = Path(parent).relative_to(self._folder).as_posix()
            names = [name if below == "." else f"{below}/{name}" for name in files]
            found += [name for name in names if _rank(name) == rank]
        own = [name for name in found if not name.endswith(_SKIPPED)]
        return [name for name in own if not (self._folder / name).is_symlink()]

    def _take(self, name: str) -> _Taken:
        """Return the file as it is now.

        Raises:
            FileNotFoundError: it has just gone.
        """
        path, own = self._folder / name, self._scratch / str(time.monotonic_ns())
        state = _state(path)
        if name == study.NAME:  # it is written in place
            with closing(sqlite3.connect(path)) as live, closing(sqlite3.connect(own)) as copy:
                live.backup(copy)
        else:  # all else is replaced by a new file, never written again
            os.link(path, own)
        return _Taken(name, own, state)


@contextmanager
def mirrored(
    folder: Path, uri: str, warn: Callable[[str], None], *, resume: bool
) -> Iterator[None]:
    """Keep a copy of the folder at ``uri``; nothing without one.

    Raises:
        ConfigError, UnreachableError: the place cannot be used at all, told before anything runs.
        ResumeError: it already holds a sweep, and none is resumed, or not that of the folder, or
            that one went on elsewhere.
    """
    if not uri:
        yield
        return
    storage = Storage(uri)
    names = _writable(storage)
    if record.NAME in names:
        if not resume:
            raise ResumeError(
                f"{uri} already holds a sweep: go on with it by bkray resume {uri}, or give "
                "another --out"
            )
        _check_not_elsewhere(folder, uri, _record_at(storage))
    mirror = Mirror(folder, storage, warn)
    mirror.start(names)
    try:
        yield
    finally:
        if not mirror.close():
            warn(
                f"{uri} lacks what it could not take; {folder} is whole, and "
                f"bkray resume {folder} sends the rest"
            )


def fetched(uri: str, runs: Path) -> Path:
    """Return the local folder of the sweep at ``uri``, copied from there where it is missing.

    Raises:
        ResumeError: no sweep is there, it went on elsewhere since it was here, or it would run a
            program that came with it.
        UnreachableError: the place cannot be reached.
    """
    storage = Storage(uri)
    runs.mkdir(parents=True, exist_ok=True)
    half = runs / f".fetch-{os.getpid()}"
    try:
        names = storage.names()
        if record.NAME not in names:
            raise ResumeError(f"{uri} holds no sweep: {record.NAME} is missing")
        there = _record_at(storage)
        _check_no_program(uri, names, there, runs)
        name = str(there["name"])
        if Path(name).name != name:
            raise ResumeError(f"{uri} names its sweep {name!r}, which would lie outside {runs}")
        folder = local_folder(uri, runs, name).resolve()
        if (folder / record.NAME).exists():
            _check_not_elsewhere(folder, uri, there)
            return folder
        for file in names:
            storage.get(file, half / file)
        sent = {file: _state(half / file) for file in names}
        (half / _SCRATCH).mkdir()
        write_json(half / _SCRATCH / _SENT, sent)
        folder.parent.mkdir(parents=True, exist_ok=True)
        half.rename(folder)
        return folder
    except OSError as error:
        raise unreachable(storage, error) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _record_at(storage: Storage) -> dict[str, Any]:
    """Return what ``sweep.json`` says there."""
    with tempfile.TemporaryDirectory() as own:
        try:
            storage.get(record.NAME, Path(own, record.NAME))
        except OSError as error:
            raise unreachable(storage, error) from error
        return record.read(Path(own))


def _check_not_elsewhere(folder: Path, uri: str, there: Mapping[str, Any]) -> None:
    """Raise ``ResumeError`` unless the folder holds all that was done of the sweep at the URI."""
    here = record.read(folder)
    known = here["resumed"][: len(there.get("resumed", ()))]
    if here["started"] != there["started"] or known != there["resumed"]:
        raise ResumeError(
            f"{uri} is not what {folder} holds, it went on elsewhere: move that folder away, then "
            f"bkray resume {uri} fetches it anew"
        )


def _check_no_program(
    uri: str, names: Collection[str], there: Mapping[str, Any], runs: Path
) -> None:
    """Raise ``ResumeError`` where something that was fetched could be run as a program."""
    source = str(there["source"])
    own = source.endswith(_PROGRAMS) and Path(source).resolve().is_relative_to(runs.resolve())
    programs = [source] if own else [name for name in names if name.endswith(_PROGRAMS)]
    if programs:
        raise ResumeError(
            f"{uri} brings the program {programs[0]!r}, which no sweep writes: have your sweep "
            f"file outside of {runs}, and nothing but the sweep at the URI"
        )


def local_folder(uri: str, runs: Path, sweep: str) -> Path:
    """Return where the sweep of this name and URI is worked on."""
    return runs / sweep / uri.rstrip("/").rpartition("/")[2]


def read_sent(folder: Path) -> dict[str, list[int]]:
    """Return the files that were sent before, as they were."""
    path = folder / _SCRATCH / _SENT
    sent: dict[str, list[int]] = json.loads(path.read_text()) if path.exists() else {}
    return sent


def _writable(storage: Storage) -> list[str]:
    """Return what is there, once a file could be written there."""
    for left in reversed(range(_FIRST_TRIES)):
        try:
            with tempfile.NamedTemporaryFile() as empty:
                storage.put(Path(empty.name), _PROBE)
            storage.delete(_PROBE)
            return storage.names()
        except OSError as error:
            if not left:
                raise unreachable(storage, error) from error
            time.sleep(1.0)
    raise AssertionError("the last try returns or raises")


def _release(taken: list[_Taken]) -> None:
    for one in taken:
        one.path.unlink(missing_ok=True)
    taken.clear()


def _state(path: Path) -> list[int]:
    seen = path.stat()
    return [seen.st_mtime_ns, seen.st_size]


def _rank(name: str) -> int:
    """Return when a file is sent, below ``_RANKS``: what others refer to comes first."""
    if name == record.NAME:
        return 0
    if name.endswith("/attempt.json"):
        return 1
    if "/events/" in name:
        return 2
    if "/checkpoints/" in name:
        return 4 if name.endswith(checkpoint.BEST) else 5
    if name.endswith("/outcome.json"):
        return 6
    return 7 if name == study.NAME else 3


_RANKS = 8
