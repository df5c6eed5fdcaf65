"""What the figures of a GPU share: where they run, how they time, and where their rows go.

Every figure is a script of its own with the options ``--out FOLDER`` (where ``<name>.md`` and
``<name>.json`` go, rewritten after every row), ``--seconds`` (after which no further row is begun)
and ``--tiny`` (a small size on the CPU, which tries the script, measures nothing and asks no bar).
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from bkray.atomic import write_json, write_text
from bkray.ops.memory import keep_freed_memory
from bkray.train import measure

ROUNDS = 7
LEAST_SECONDS = 0.02
"""Of one timing; shorter work is repeated within it."""
MISSED_EXIT = 3
"""Every row was measured, and a bar was missed."""
NO_GPU = "this figure needs a CUDA device: run it on a GPU, or try the script with --tiny"

MISSED = "MISSED"
"""In the column of a bar."""

Row = dict[str, Any]


class Figure:
    """The rows of one figure; a row that breaks says why and leaves the others alone."""

    def __init__(self, name: str, title: str, chosen: argparse.Namespace) -> None:
        self.name, self.title, self.out, self.tiny = name, title, chosen.out, chosen.tiny
        self.device = torch.device("cpu" if chosen.tiny else "cuda")
        self.rows: list[Row] = []
        self.broken = False
        self.missed: list[str] = []
        """Bars, each with the row that missed it."""
        self._ends = time.monotonic() + chosen.seconds

    def row(self, given: Row, measured: Callable[[], Row]) -> None:
        """Measure a row and write it down, unless the time is over."""
        if time.monotonic() > self._ends:
            found: Row = {"note": "left out: the time was over"}
            self.broken = True
        else:
            try:
                found = measured()
            except torch.OutOfMemoryError:
                found = {"note": "out of memory"}
            except Exception as error:  # Triton's errors have no base but this one
                said = str(error).strip().splitlines()[:1]
                found = {"note": ": ".join([type(error).__name__, *said])}
                self.broken = True
        self.rows.append({**given, **found})
        who = " ".join(shown(value) for value in given.values())
        self.missed += [f"{who}: {name}" for name, met in found.items() if met == MISSED]
        print(
            " ".join(f"{name}={shown(value)}" for name, value in self.rows[-1].items()), flush=True
        )
        self._write()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def bar(self, name: str, is_met: bool) -> Row:
        """Return the column of a bar, which nothing of a tiny size can meet or miss."""
        return {f"{name} met": "not asked" if self.tiny else "yes" if is_met else MISSED}

    def _write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        where = {**machine(self.device), "tiny": self.tiny}
        write_json(
            self.out / f"{self.name}.json",
            {"name": self.name, "title": self.title, **where, "missed": self.missed}
            | {"rows": self.rows},
        )
        said = f"{where['device']}, commit {where['commit']}, torch {where['torch']}"
        write_text(
            self.out / f"{self.name}.md", f"## {self.title}\n\n{said}\n\n{table(self.rows)}\n"
        )


def main(
    name: str,
    title: str,
    measure_all: Callable[[Figure], None],
    seconds: float,
    words: list[str] | None = None,
) -> None:
    """Run a figure's script.

    Exit 1 where a row broke or was left out, 2 without a GPU, 3 where all rows are there and a bar
    was missed.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu.{name}", description=title)
    parser.add_argument("--out", type=Path, default=Path("gpu-figures"))
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args(words)
    if not chosen.tiny and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        sys.exit(2)
    if chosen.tiny:
        os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is imported
    keep_freed_memory()
    torch.manual_seed(0)
    figure = Figure(name, title, chosen)
    measure_all(figure)
    sys.exit(1 if figure.broken else MISSED_EXIT if figure.missed else 0)


def machine(device: torch.device) -> dict[str, str]:
    """Return what was measured on: the device's name, the commit, and torch's version."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else platform.machine() + " CPU",
        "commit": commit.stdout.strip() or "unknown",
        "torch": torch.__version__,
    }


def median_seconds(
    work: Callable[[], object], device: torch.device, *, rounds: int = ROUNDS
) -> float:
    """Return the median time of one call, behind two that compile and warm up."""
    for _ in range(2):
        work()
    elapsed = measure.stopwatch(device)
    work()
    repeats = max(1, int(LEAST_SECONDS / max(elapsed(), 1e-6))) if device.type == "cuda" else 1
    seconds = []
    for _ in range(rounds if device.type == "cuda" else 1):
        elapsed = measure.stopwatch(device)
        for _ in range(repeats):
            work()
        seconds.append(elapsed() / repeats)
    return statistics.median(seconds)


def peak_gib(work: Callable[[], object], device: torch.device) -> float:
    """Return the most memory that is held during one call."""
    measure.forget_peak_memory(device)
    work()
    measure.wait(device)
    return measure.peak_memory_mib(device) / 2**10


def table(rows: Iterable[Row]) -> str:
    """Return rows as a Markdown table; a column that a row lacks is empty there."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names)]
    lines += [[shown(row.get(name, "")) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: Any) -> str:
    """Return a number in four digits, a count with its thousands."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
