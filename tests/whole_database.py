"""Whether a program opens a new database under its own name before all of it is there."""

import subprocess
import sys
from pathlib import Path

WATCH = """
import os, sys
from pathlib import Path

place = Path(sys.argv[1])

def watch(event, args):
    if event == "sqlite3.connect" and Path(str(args[0])) == place and not place.exists():
        os._exit(3)

sys.addaudithook(watch)
"""


def made_whole(place: Path, program: str) -> bool:
    """Run ``program``, which makes the database ``place``; return whether it appeared whole."""
    command = [sys.executable, "-c", WATCH + program, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 3), done.stderr
    return done.returncode == 0 and place.exists()
