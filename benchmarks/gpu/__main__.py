"""All figures of a GPU, one after the other, each in a process of its own.

    python -m benchmarks.gpu [--out FOLDER] [--tiny]

A figure that breaks, or takes more than its time, leaves the others alone; what it had measured by
then is kept. The tables of all of them go to ``figures.md``. Bars that were missed are listed.
Exit code 1 if anything is missing or missed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.figure import MISSED_EXIT, NO_GPU
from bkray.atomic import write_text

SECONDS = {"scan": 60, "mixers": 110, "models": 140, "adaptive": 60, "stream": 50}
"""Of each figure, in which it begins rows: 7 minutes in all."""
GRACE_SECONDS = 10
"""For the row that has begun; then the figure is ended."""


def main() -> None:
    """Run them and say which are whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-figures"))
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    if not chosen.tiny and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        sys.exit(2)
    missing = [name for name in SECONDS if not ran(name, chosen.out, chosen.tiny)]
    parts = [chosen.out / f"{name}.md" for name in SECONDS]
    write_text(chosen.out / "figures.md", "\n".join(p.read_text() for p in parts if p.exists()))
    missed = [bar for name in SECONDS for bar in missed_by(name, chosen.out)]
    print(f"figures in {chosen.out}")
    sys.exit(told(missing, missed))


def told(missing: list[str], missed: list[str]) -> int:
    """Say what is not there and which bars were missed; return the exit code."""
    print(f"not whole: {', '.join(missing)}" if missing else "all whole")
    for bar in missed:
        print(f"bar missed by {bar}")
    return 1 if missing or missed else 0


def ran(name: str, out: Path, tiny: bool) -> bool:
    """Run one figure; whether all its rows are there."""
    for old in (out / f"{name}.md", out / f"{name}.json"):
        old.unlink(missing_ok=True)
    words = ["--out", str(out), "--seconds", str(SECONDS[name]), *(["--tiny"] if tiny else [])]
    print(f"== {name}", flush=True)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", f"benchmarks.gpu.{name}", *words],
            timeout=SECONDS[name] + GRACE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: ended, its time was over", flush=True)
        return False
    return ended.returncode in (0, MISSED_EXIT)


def missed_by(name: str, out: Path) -> list[str]:
    """Return the bars that a figure says it missed, as far as it came."""
    path = out / f"{name}.json"
    return (
        [f"{name}: {bar}" for bar in json.loads(path.read_text())["missed"]]
        if path.exists()
        else []
    )


if __name__ == "__main__":
    main()
