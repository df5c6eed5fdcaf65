"""Files that become artifacts, each with its folder among them."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Placed = tuple[Path, str]
"""A file, and the folder that it goes into among the artifacts of its run."""

Artifacts = Callable[[Path], Sequence[Path]]
"""From the folder of a trial that ended to files in it, written on the way or found there."""

_TOO_BIG = "snapshot.pt"


class TrialFiles:
    """The artifacts of a sweep's trials: what ``artifacts`` returns, and their ``forensics/``.

    A snapshot of the model stays where it is. What ``artifacts`` raises is told once: a figure
    that cannot be drawn must not take the numbers with it.
    """

    def __init__(
        self, folder: Path, artifacts: Artifacts | None, warn: Callable[[str], None]
    ) -> None:
        self._trials = folder.absolute() / "trials"
        self._artifacts = artifacts
        self._warn = warn
        self._told = False

    def of(self, trial_id: str) -> list[Placed]:
        """Return what there is to attach, each file under the folder that it lies in."""
        folder = self._trials / trial_id
        if Path(trial_id).name != trial_id or trial_id == "..":
            self._tell(f"MLflow lacks the files of {trial_id!r}, which is no name of a trial")
            return []
        made = self._made(folder)
        forensics = sorted(path for path in folder.glob("forensics/*.*") if path.name != _TOO_BIG)
        found = list(dict.fromkeys([*made, *forensics]))
        inside = [path for path in found if _lies_in(path, folder)]
        if inside != found:
            self._tell(f"MLflow lacks files of trial {trial_id} that are links out of its folder")
        return [(path, path.parent.relative_to(folder).as_posix()) for path in inside]

    def _made(self, folder: Path) -> Sequence[Path]:
        if self._artifacts is None:
            return ()
        try:
            return self._artifacts(folder)
        except Exception as error:  # told, and the run is shown without these files
            said = f"{type(error).__name__}: {error}"
            self._tell(f"MLflow lacks the files of trial {folder.name} ({said})")
            return ()

    def _tell(self, said: str) -> None:
        if not self._told:
            self._told = True
            self._warn(said)


def placed(paths: Sequence[Path]) -> Iterator[Placed]:
    """Yield every file with its folder relative to the folder that holds all of ``paths``.

    Links to what lies outside of that folder are left out.
    """
    if not paths:
        return
    whole = [path.absolute() for path in paths]
    root = os.path.commonpath([path.parent for path in whole])
    for path in whole:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_dir() and _lies_in(file, Path(root)):
                folder = file.parent.relative_to(root).as_posix()
                yield file, "" if folder == "." else folder


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
