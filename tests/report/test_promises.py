"""The guides' promises without the monitor and with it, side by side."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_ladder import rung, write_ladder, write_rungs

from bkray.report.findings import Findings
from bkray.report.ladder import Ladder, ladder, plain
from bkray.report.ladder_plots import ladder_figures
from bkray.report.ladder_words import cells as ladder_cells
from bkray.report.ladder_words import sentences
from bkray.report.promises import Pair, cells, pairs
from bkray.report.ranking import brief
from bkray.report.rung_rows import Line
from bkray.report.tables import collect, objectives
from bkray.report.terminal import render_text

ON = {"train.monitor": "birman_schwinger", "ladder.monitor": "both"}


def in_pairs(folder: Path, **monitored: float) -> Path:
    """Lengths 128 and 512, the longer one with other numbers where it has the monitor."""
    sweep = write_ladder(folder / "s", **ON)
    for n_seq, other in ((128, {}), (512, monitored)):
        write_rungs(sweep, rung(n_seq, spike_count=1.0))
        beside = rung(n_seq, **{"spike_count": 1.0, "tokens_per_second": 9.0, **other})
        write_rungs(sweep, beside, arm=f"seq-{n_seq}-monitored")
    return sweep


def of(sweep: Path) -> Ladder:
    found = ladder(sweep)
    assert found is not None
    return found


def test_each_length_has_a_line_without_the_monitor_and_one_with_it(tmp_path: Path) -> None:
    found = of(in_pairs(tmp_path, spike_count=0.1, gradient_norm_std=1.0, precision_upgrades=2.0))
    heads, *lines = cells(found)
    assert heads[:2] == ["seq_len", "monitor"]
    assert [line[:4] for line in lines] == [
        ["128", "off", "10", "0.125"],
        ["128", "on", "10", "0.125"],
        ["512", "off", "10", "0.125"],
        ["512", "on", "1", "0.5"],
    ]
    assert [line[heads.index("mixers in float64")] for line in lines] == ["-", "0", "-", "2"]
    assert [line[-1] for line in lines] == ["2 of 3"] * 4
    heads, *lines = ladder_cells(found)
    assert [line[heads.index("monitor")] for line in lines] == ["off", "on"] * 2
    text = render_text(collect(tmp_path / "s"), objectives(tmp_path / "s"), Findings(found))
    assert "The guides' promises, without the monitor and with it\nseq_len  monitor" in text


def test_equal_numbers_are_said_to_be_equal(tmp_path: Path) -> None:
    found = of(in_pairs(tmp_path))  # but for the time, which the monitor takes
    assert [pair.is_equal for pair in pairs(found)] == [True, True]
    assert (
        "With the monitor against without: at 128, 512 every loss, gradient norm, spike and NaN "
        "is the very same number."
    ) in sentences(found)


@pytest.mark.parametrize(
    ("upgrades", "why"),
    [
        (1.0, "(mixers that scanned in float64: 1, loss +0.25 nats)"),
        (0.0, "(though nothing was scanned in float64, which is no work of the monitor, loss"),
    ],
)
def test_numbers_that_differ_are_told_with_the_reason(
    tmp_path: Path, upgrades: float, why: str
) -> None:
    loss = rung(512).metrics["loss"] + 0.25
    found = of(in_pairs(tmp_path, loss=loss, precision_upgrades=upgrades))
    assert [pair.is_equal for pair in pairs(found)] == [True, False]
    [said] = [words for words in sentences(found) if words.startswith("With the monitor")]
    assert "at 128 every loss" in said
    assert f"at 512 numbers differ {why}" in said


def test_seeds_of_a_running_sweep_are_compared_where_both_are(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **ON)
    write_rungs(sweep, rung(128))
    write_rungs(sweep, rung(128, loss=9.0), seed=1)
    write_rungs(sweep, rung(512))
    write_rungs(sweep, rung(128), arm="seq-128-monitored")
    write_rungs(sweep, rung(512), arm="seq-512-monitored", seed=1)
    told = "at 128 every loss, gradient norm, spike and NaN is the very same number."
    assert f"With the monitor against without: {told}" in sentences(of(sweep))
    nans = [{"gradient_norm_std": float("nan")} for _ in range(2)]
    row = of(sweep).lines[0].rows[0]
    one, other = (Line((replace(row, metrics={**row.metrics, **nan}),)) for nan in nans)
    assert Pair(without=one, monitored=other).is_equal


def test_one_that_diverged_keeps_none(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **ON)
    write_rungs(sweep, rung(128, loss=1e9))
    write_rungs(sweep, rung(128), arm="seq-128-monitored")
    assert [line[-1] for line in cells(of(sweep))[1:]] == ["none: diverged", "3 of 3"]
    assert not pairs(of(sweep))[0].is_equal


def test_the_ladder_itself_is_that_without_the_monitor(tmp_path: Path) -> None:
    paired = of(in_pairs(tmp_path, loss=1e9))
    (tmp_path / "other").mkdir()
    alone = write_ladder(tmp_path / "other")
    for n_seq in (128, 512):
        write_rungs(alone, rung(n_seq, spike_count=1.0))
    other = of(alone)
    assert (paired.longest_stable, paired.next_diverged) == (512, None)
    assert [line.n_seq for line in paired.main] == [128, 512]
    assert paired.degradation[::2] == other.degradation
    assert plain(paired)["fits"] == plain(other)["fits"]
    drawn = [{f.name: f.spec["datasets"] for f in ladder_figures(one)} for one in (paired, other)]
    assert drawn[0] == drawn[1]


def test_without_pairs_there_is_no_table(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **{"train.monitor": "birman_schwinger"})
    write_rungs(sweep, rung(128))
    assert cells(of(sweep)) == []
    assert any(
        words.startswith("The guides' promises, monitor on") for words in sentences(of(sweep))
    )


def test_steps_of_unequal_size_are_told(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    write_rungs(sweep, rung(100, tokens_per_step=1000.0))
    write_rungs(sweep, rung(300, tokens_per_step=900.0))
    told = "Tokens per step are not the same at all lengths: 1,000 at 100, 900 at 300."
    assert told in sentences(of(sweep))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (105_234.6, "105,235"),
        (99_999.6, "100,000"),
        (12_345.6, "12,346"),
        (-2.5e6, "-2,500,000"),
        (1.5, "1.5"),
        (3e15, "3e+15"),
        (float("inf"), "inf"),
        (None, "-"),
        (1000000, "1000000"),
    ],
)
def test_large_numbers_have_all_their_digits(value: float | None, said: str) -> None:
    assert brief(value) == said
