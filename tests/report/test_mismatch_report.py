"""Verdicts on made cells, their table, their words and their files."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from made_mismatch import numbers, write_cells_of, write_mismatch, write_pair
from made_sweep import write_act_sweep
from rich.console import Console

from bkray.cli.look import report as report_verb
from bkray.cli.look import show
from bkray.report.cell_rows import cell_rows
from bkray.report.findings import Findings
from bkray.report.mismatch import Cell, mismatch, seeds_needed
from bkray.report.mismatch_plots import mismatch_figures
from bkray.report.mismatch_words import cells, columns, sentences
from bkray.report.render import write_report
from bkray.report.tables import collect, objectives
from bkray.report.terminal import render
from bkray.report.vega import png


def judged(tmp_path: Path, cell: Any, **further: Any) -> Cell:
    sweep = write_mismatch(tmp_path / "sweep")
    write_pair(sweep, cell, **further)
    return next(one for one in mismatch(sweep) if one.rows[0].n_train == 256)


@pytest.mark.parametrize(
    ("cell", "verdict", "made_by"),
    [
        (numbers(1.6), "safe", ["perplexity", "retrieval", "states"]),
        (numbers(1.3, recall=0.9), "safe", ["perplexity", "retrieval", "states"]),
        (numbers(1.65), "moderate", ["perplexity"]),
        (numbers(1.6, own=1.55), "moderate", ["perplexity"]),
        (numbers(1.6, own=1.4), "risky", ["perplexity"]),
        (numbers(1.8), "risky", ["perplexity"]),
        (numbers(1.6, recall=0.7), "moderate", ["retrieval"]),
        (numbers(1.6, recall=0.63), "risky", ["retrieval"]),
        (numbers(1.8, recall=0.7), "risky", ["perplexity"]),
        (numbers(1.6, shift=0.1), "moderate", ["states"]),
        (numbers(math.nan), "risky", ["perplexity"]),
        (numbers(1.6, recall=math.nan), "risky", ["retrieval"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_gravest_number_makes_the_verdict(
    tmp_path: Path, cell: dict[str, float], verdict: str, made_by: list[str]
) -> None:
    one = judged(tmp_path, cell)
    assert one.verdict == verdict
    assert [c.name for c in one.criteria if c.grade == verdict] == made_by
    assert not one.decided, "one seed decides nothing"


def test_what_is_lost_is_lost_against_the_same_seed_trained_at_that_length(tmp_path: Path) -> None:
    sweep = write_mismatch(tmp_path / "sweep")
    for seed, lost in ((0, 0.1), (1, 0.3)):
        own = {(512, "truncate"): numbers(1.0 + seed + lost, recall=0.5)}
        write_cells_of(sweep, own, seed=seed)
        best = {(512, "retrain"): numbers(1.0 + seed, recall=0.6 + seed / 10, shift=None)}
        write_cells_of(sweep, best, n_train=512, seed=seed)
    one = mismatch(sweep)[-1]
    perplexity, retrieval = one.criterion("perplexity"), one.criterion("retrieval")
    assert perplexity is not None and retrieval is not None
    assert perplexity.values == pytest.approx((math.expm1(0.1), math.expm1(0.3)))
    assert retrieval.values == pytest.approx((1 / 6, 2 / 7))
    assert (retrieval.low, retrieval.high) == pytest.approx((1 / 6, 2 / 7))


@pytest.mark.parametrize("seeds", [5, 6])
@pytest.mark.parametrize(
    ("cell", "verdict"),
    [(numbers(1.6), "safe"), (numbers(1.65), "moderate"), (numbers(2.0), "risky")],
)
def test_a_verdict_is_decided_once_the_seeds_can(
    tmp_path: Path, cell: dict[str, float], verdict: str, seeds: int
) -> None:
    one = judged(tmp_path, cell, seeds=seeds)
    assert one.verdict == verdict
    # that it is no graver takes five seeds; that it is no less grave is asked of three criteria
    assert one.decided == (seeds >= seeds_needed() or verdict == "safe")


def test_seeds_that_disagree_decide_nothing(tmp_path: Path) -> None:
    one = judged(tmp_path, lambda seed: numbers(1.5 if seed % 2 else 1.9), seeds=8)
    assert (one.verdict, one.decided) == ("risky", False)


@pytest.mark.parametrize("outcome", ["diverged", "oom", "failed"])
def test_a_seed_that_was_lost_makes_a_cell_risky(tmp_path: Path, outcome: str) -> None:
    sweep = write_mismatch(tmp_path / "sweep")
    write_pair(sweep, numbers(1.6), seeds=2)
    write_cells_of(sweep, {(512, "extrapolate"): None}, seed=2, outcome=outcome)
    one = mismatch(sweep)[-1]
    assert (one.verdict, one.decided, one.n_lost, len(one.rows)) == ("risky", False, 1, 3)
    assert one.mean("ppl") is None
    assert any(f"1 of 3 seeds ended {outcome}" in words for words in sentences([one]))


def test_without_retraining_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    sweep = write_mismatch(tmp_path / "sweep")
    write_cells_of(sweep, {(512, "extrapolate"): numbers(1.6)})
    write_cells_of(sweep, {(512, "retrain"): None}, n_train=512, outcome="diverged")
    retrain, one = mismatch(sweep)
    assert (one.verdict, one.decided) == ("unknown", False)
    assert retrain.verdict == "risky"


def test_what_cannot_be_done_says_so(tmp_path: Path) -> None:
    one = judged(tmp_path, None, model="attention learned")
    assert (one.verdict, one.criteria) == ("not applicable", ())
    said = "Not applicable - extrapolate: attention learned 256 at 512: the table of positions"
    assert any(words.startswith(said) for words in sentences([one]))


def test_another_sweep_has_no_cells(tmp_path: Path) -> None:
    act = write_act_sweep(tmp_path / "act", 6)
    assert mismatch(act) == [] and cell_rows(act) == []
    assert write_report(act).cells is None
    mixed = write_mismatch(tmp_path / "mixed")
    write_cells_of(mixed, {(512, "extrapolate"): numbers()}, arm="mine")
    write_cells_of(mixed, {(512, "extrapolate"): numbers()}, seed=1, outcome="running")
    assert mismatch(mixed) == []
    [row] = cell_rows(mixed)
    assert (row.model, row.n_train, row.n_eval) == ("bk none", 256, 512)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = write_mismatch(tmp_path / "sweep")
    write_pair(folder, numbers(1.8), model="attention rope", seeds=2)
    write_pair(folder, numbers(1.6), seeds=2)
    write_pair(folder, None, model="bk learned", seeds=2)
    return folder


def test_the_table_has_a_line_per_cell(sweep: Path) -> None:
    heads, *lines = cells(mismatch(sweep))
    assert {len(line) for line in lines} == {len(heads)}
    shown = [dict(zip(heads, line, strict=True)) for line in lines]
    assert [(one["model"], one["strategy"], one["verdict"]) for one in shown] == [
        ("attention rope", "retrain", "reference"),
        ("attention rope", "extrapolate", "risky: perplexity"),
        ("bk none", "retrain", "reference"),
        ("bk none", "extrapolate", "safe"),
        ("bk learned", "retrain", "reference"),
        ("bk learned", "extrapolate", "not applicable"),
    ]
    assert lines[1][5:8] == ["5.474", "6.050", "+22.1%"]
    numbers_of = columns(mismatch(sweep))
    assert {len(values) for values in numbers_of.values()} == {6}
    assert numbers_of["ppl lost"][1] == pytest.approx(math.expm1(0.2))
    assert numbers_of["decided"] == ["", "as it stands", "", "as it stands", "", ""]


def test_the_words_have_the_numbers_behind_each_verdict(sweep: Path) -> None:
    said = "\n".join(sentences(mismatch(sweep)))
    assert "Risky - extrapolate: attention rope 256 at 512 (perplexity +22.1%)." in said
    assert "Safe - extrapolate: bk none 256 at 512." in said
    assert "0 of 2 verdicts; the others are as they stand: of 2 seeds, where safe" in said
    assert (seeds_needed(1), seeds_needed()) == (5, 6)


def test_the_report_has_table_figures_and_a_file_of_rows(sweep: Path) -> None:
    written = write_report(sweep)
    assert written.cells is not None
    rows = pq.read_table(written.cells).to_pylist()
    assert len(rows) == 12
    first = next(r for r in rows if r["arm"] == "attention-rope-256" and r["seed"] == 1)
    assert (first["strategy"], first["verdict"], first["outcome"]) == (
        *("extrapolate", "risky", "ok"),
    )
    assert first["late_loss_nats"] == 1.8
    idle = [row for row in rows if row["outcome"] == "not applicable"]
    assert len(idle) == 2 and all(row["ppl"] is None for row in idle)
    page = written.html.read_text()
    for words in (
        "Length mismatch",
        'id="mismatch"',
        "risky",
        "mismatch.parquet",
        "plot-mismatch",
    ):
        assert words in page
    names = {path.stem for path in written.figures}
    assert {"mismatch_attention_rope", "mismatch_bk_none", "mismatch_bk_learned"} <= names


def test_a_figure_draws_each_strategy_by_position(sweep: Path) -> None:
    first = mismatch_figures(mismatch(sweep))[0]
    drawn = max(first.spec["datasets"].values(), key=len)
    assert {p["strategy"] for p in drawn} == {"retrain", "extrapolate"}
    assert [p["x"] for p in drawn[:8]] == list(range(64, 513, 64))
    assert png(first).startswith(b"\x89PNG")


def test_a_terminal_shows_it(sweep: Path) -> None:
    out = io.StringIO()
    rows, found = collect(sweep), mismatch(sweep)
    Console(file=out, width=400).print(render(rows, objectives(sweep), Findings(mismatch=found)))
    assert "Length mismatch" in out.getvalue() and "risky: perplexity" in out.getvalue()


def test_the_verbs_tell_of_it(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(sweep)
    assert "risky: perplexity" in capsys.readouterr().out
    show(sweep, as_json=True)
    told = json.loads(capsys.readouterr().out)["mismatch"]
    assert [one["verdict"] for one in told][:2] == ["reference", "risky"]
    assert told[1]["criteria"][0]["mean"] == pytest.approx(math.expm1(0.2))
    report_verb(sweep, as_json=True)
    assert json.loads(capsys.readouterr().out)["cells"].endswith("mismatch.parquet")
