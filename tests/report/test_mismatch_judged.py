"""What a cell of a mismatch sweep may not be judged by: lost seeds, blind probes, itself."""

import math
from pathlib import Path
from typing import Any

import pytest
from made_mismatch import numbers, write_cells_of, write_mismatch, write_pair

from bkray.report.mismatch import Cell, mismatch
from bkray.report.mismatch_words import cells, sentences


def judged(tmp_path: Path, cell: Any, **further: Any) -> Cell:
    sweep = write_mismatch(tmp_path / "sweep")
    write_pair(sweep, cell, **further)
    return next(one for one in mismatch(sweep) if one.rows[0].n_train == 256)


@pytest.mark.parametrize("outcome", ["oom", "diverged", "pruned"])
def test_seeds_whose_reference_was_lost_are_not_dropped_in_silence(
    tmp_path: Path, outcome: str
) -> None:
    sweep = write_mismatch(tmp_path / "sweep")
    write_pair(sweep, numbers(1.6), seeds=2)
    write_cells_of(sweep, {(512, "extrapolate"): numbers(1.6)}, seed=2)
    write_cells_of(sweep, {(512, "retrain"): None}, n_train=512, seed=2, outcome=outcome)
    one = mismatch(sweep)[-1]
    assert (one.verdict, one.decided, one.n_pairs, len(one.rows)) == ("unknown", False, 2, 3)
    assert cells([one])[1][-1] == "2/3"
    assert any("perplexity of 2 of 3 seeds" in words for words in sentences([one]))


def test_what_is_risky_without_the_seeds_that_lack_stays_risky(tmp_path: Path) -> None:
    one = judged(tmp_path, numbers(1.9, recall=0.02), found=0.05, seeds=2)
    assert one.verdict == "risky"


@pytest.mark.parametrize(
    ("found", "items", "verdict"),
    [(0.05, 64, "unknown"), (0.2, 12, "unknown"), (0.2, 64, "risky"), (math.nan, 64, "unknown")],
)
def test_a_probe_that_finds_next_to_nothing_makes_nothing_safe(
    tmp_path: Path, found: float, items: int, verdict: str
) -> None:
    cell = {**numbers(1.6, recall=0.1 if found > 0.1 else found), "items": float(items)}
    one = judged(tmp_path, cell, found=found)
    assert one.verdict == verdict
    assert (cells([one])[1][9] == "-") == (verdict == "unknown")


@pytest.mark.parametrize(
    ("late_loss", "verdict", "lost"),
    [(1.4, "safe", "-"), (1.65, "moderate: perplexity", "+5.1%")],
)
def test_the_reference_is_not_compared_with_itself(
    tmp_path: Path, late_loss: float, verdict: str, lost: str
) -> None:
    cell = {**numbers(late_loss, shift=None), "is_reference": 1.0}
    one = judged(tmp_path, cell, strategy="sliding_window")
    line = dict(zip(*cells([one]), strict=True))
    assert line["verdict"] == f"{verdict} (is the reference)"
    assert line["shift"] == "-" and cells([one])[1][7] == lost
    assert any("their states are not judged" in words for words in sentences([one]))


def test_planted_twins_are_told_from_items_that_merge_by_themselves(tmp_path: Path) -> None:
    cell = {**numbers(), "identical_items": 34.0, "identical_natural_items": 2.0}
    one = judged(tmp_path, cell)
    assert cells([one])[1][11] == "34+2/64"
    assert any("twins, planted" in words for words in sentences([one]))
