"""Shell scripts under test."""

import subprocess
import sysconfig
from pathlib import Path


def lint(*scripts: Path) -> None:
    """Hold scripts against shellcheck, which reads them as their first line says."""
    checker = Path(sysconfig.get_path("scripts"), "shellcheck")
    words = [str(checker), "--severity=warning", *map(str, scripts)]
    read = subprocess.run(words, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stdout


def program(folder: Path, name: str, script: str) -> None:
    """Put a program of this name into a folder, to be found first on the ``PATH``."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
