"""The figures of a GPU, tried in their tiny mode: every row is there, and a broken one is said."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as every
from benchmarks.gpu.figure import Figure, main

pytest.importorskip("triton", reason="needs triton, of the dev extra")


def ran(name: str, out: Path, *words: str) -> int:
    module = importlib.import_module(f"benchmarks.gpu.{name}")
    with pytest.raises(SystemExit) as ended:
        main(name, name, module.measure_all, 60, ["--out", str(out), *words])
    return int(ended.value.code or 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tiny figures interpret their kernels")
@pytest.mark.parametrize("name", every.SECONDS)
def test_a_figure_leaves_a_table_and_its_rows(name: str, tmp_path: Path) -> None:
    assert ran(name, tmp_path, "--tiny") == 0
    figure = json.loads((tmp_path / f"{name}.json").read_text())
    assert figure["tiny"] and figure["commit"] and figure["device"].endswith("CPU")
    assert len(figure["rows"]) >= 2
    assert all("note" not in row for row in figure["rows"])
    lines = (tmp_path / f"{name}.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in lines) == len(figure["rows"]) + 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_a_figure_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("scan", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_broken_row_and_one_without_time_are_said_and_leave_the_others(tmp_path: Path) -> None:
    def measure_all(figure: Figure) -> None:
        def breaks() -> dict[str, float]:
            raise RuntimeError("no such kernel\nat line 3")

        figure.row({"who": "one"}, breaks)
        figure.row({"who": "other"}, lambda: {"ms": 1.5})
        figure._ends = 0.0
        figure.row({"who": "late"}, lambda: {"ms": 1.5})

    with pytest.raises(SystemExit) as ended:
        main("made", "Made", measure_all, 60, ["--out", str(tmp_path), "--tiny"])
    assert ended.value.code == 1
    rows = json.loads((tmp_path / "made.json").read_text())["rows"]
    assert [row.get("note") for row in rows] == [
        "RuntimeError: no such kernel",
        None,
        "left out: the time was over",
    ]


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
