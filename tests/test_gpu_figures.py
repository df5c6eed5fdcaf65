"""The figures of a GPU, tried in their tiny mode: every row is there, and a broken one is said."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as every
from benchmarks.gpu import scan
from benchmarks.gpu.figure import MISSED, MISSED_EXIT, Figure, main

pytest.importorskip("triton", reason="needs triton, of the dev extra")
BARS = {
    "scan": {"forward met", "forward+backward met"},
    "mixers": {"ours is faster met"},
    "models": {"within 1.1 met"},
}
"""Columns of the figures that have any."""


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny figure has its kernels interpreted, which is not for the tests behind it."""
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))


def ran(name: str, out: Path, *words: str) -> int:
    if torch.cuda.is_available():  # a tiny figure must be the first to import the kernels
        command = [sys.executable, "-m", f"benchmarks.gpu.{name}", "--out", str(out), *words]
        return subprocess.run(command).returncode
    module = importlib.import_module(f"benchmarks.gpu.{name}")
    with pytest.raises(SystemExit) as ended:
        main(name, name, module.measure_all, 60, ["--out", str(out), *words])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", every.SECONDS)
def test_a_figure_leaves_a_table_and_its_rows(name: str, tmp_path: Path) -> None:
    assert ran(name, tmp_path, "--tiny") == 0
    figure = json.loads((tmp_path / f"{name}.json").read_text())
    assert figure["tiny"] and figure["commit"] and figure["device"].endswith("CPU")
    assert len(figure["rows"]) >= 2
    assert all("note" not in row for row in figure["rows"])
    assert figure["missed"] == []
    bars = {column for row in figure["rows"] for column in row if column.endswith(" met")}
    assert bars == BARS.get(name, set())
    lines = (tmp_path / f"{name}.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in lines) == len(figure["rows"]) + 2
    if name == "models":
        chunks = [(row["mixer"], row["N"], row["chunk"]) for row in figure["rows"]]
        assert ("bk", 64, 32) in chunks and ("bk", 64, "") in chunks
        assert all("time over 16" in row for row in figure["rows"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_a_figure_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("scan", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (RuntimeError("no such kernel\nat line 3"), "RuntimeError: no such kernel"),
        (TypeError("not so"), "TypeError: not so"),
        (ImportError(), "ImportError"),
        (torch.OutOfMemoryError("all of it"), "out of memory"),
    ],
)
def test_a_broken_row_and_one_without_time_are_said_and_leave_the_others(
    error: Exception, note: str, tmp_path: Path
) -> None:
    def measure_all(figure: Figure) -> None:
        def breaks() -> dict[str, float]:
            raise error

        figure.row({"who": "one"}, breaks)
        figure.row({"who": "other"}, lambda: {"ms": 1.5})
        figure._ends = 0.0
        figure.row({"who": "late"}, lambda: {"ms": 1.5})

    assert made(measure_all, tmp_path) == 1
    rows = json.loads((tmp_path / "made.json").read_text())["rows"]
    assert [row.get("note") for row in rows] == [note, None, "left out: the time was over"]


def test_a_bar_that_is_missed_ends_with_its_own_exit_code_and_stays_in_the_table(
    tmp_path: Path,
) -> None:
    def measure_all(figure: Figure) -> None:
        assert figure.bar("fast", False) == {"fast met": "not asked"}
        figure.tiny = False
        figure.row({"N": 2048, "who": "a"}, lambda: {"ms": 1.5, **figure.bar("fast", True)})
        figure.row({"N": 8192, "who": "b"}, lambda: {"ms": 2.5, **figure.bar("fast", False)})

    assert made(measure_all, tmp_path) == MISSED_EXIT
    assert json.loads((tmp_path / "made.json").read_text())["missed"] == ["8,192 b: fast met"]
    table = (tmp_path / "made.md").read_text().splitlines()[-3:]
    assert table[1:] == ["| 2,048 | a | 1.5 | yes |", f"| 8,192 | b | 2.5 | {MISSED} |"]


def made(measure_all: Callable[[Figure], None], out: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main("made", "Made", measure_all, 60, ["--out", str(out), "--tiny"])
    return int(ended.value.code or 0)


def test_missed_bars_of_all_figures_are_listed_and_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scan.json").write_text('{"missed": ["8,192: forward met"]}')
    assert every.missed_by("scan", tmp_path) == ["scan: 8,192: forward met"]
    assert every.missed_by("models", tmp_path) == []
    assert every.told([], []) == 0
    assert every.told([], ["scan: 8,192: forward met"]) == 1
    assert "bar missed by scan: 8,192: forward met" in capsys.readouterr().out


@pytest.mark.parametrize("shape", scan.SHAPES)
def test_no_shape_of_the_scan_fits_the_cache_of_an_h200(shape: tuple[int, ...]) -> None:
    B, N, K, H = shape
    moved = B * N * H * scan.fewest_bytes(K, torch.bfloat16)["forward"]
    assert moved > 2 * 50e6


def test_a_figure_that_breaks_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(every, "SECONDS", {"no_such_figure": 60, "stream": 60})
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        every.main()
    assert ended.value.code == 1
    assert "not whole: no_such_figure" in capsys.readouterr().out
    assert "A stream of a million tokens" in (tmp_path / "figures.md").read_text()


def test_all_figures_together_take_under_eight_minutes() -> None:
    most = sum(seconds + every.GRACE_SECONDS for seconds in every.SECONDS.values())
    assert most < 8 * 60
