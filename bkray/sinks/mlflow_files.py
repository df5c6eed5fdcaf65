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
        made = self._made(folder)
        forensics = sorted(path for path in folder.glob("forensics/*.*") if path.name != _TOO_BIG)
        return [
            (path, path.parent.relative_to(folder).as_posix())
            for path in dict.fromkeys([*made, *forensics])
        ]

    def _made(self, folder: Path) -> Sequence[Path]:
        if self._artifacts is None:
            return ()
        try:
            return self._artifacts(folder)
        except Exception as error:  # told, and the run is shown without these files
            if not self._told:
                self._told = True
                said = f"{type(error).__name__}: {error}"
                self._warn(f"MLflow lacks the files of trial {folder.name} ({said})")
            return ()


def placed(paths: Sequence[Path]) -> Iterator[Placed]:
    """Yield every file with its folder relative to the folder that holds all of ``paths``."""
    if not paths:
        return
    whole = [path.absolute() for path in paths]
    root = os.path.commonpath([path.parent for path in whole])
    for path in whole:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_dir():
                folder = file.parent.relative_to(root).as_posix()
                yield file, "" if folder == "." else folder
