"""The comparison of families from the files of a sweep that nobody trained."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_sweep import LOSS, write_record

from bkray.events import Measured, TrialEnded, TrialStarted
from bkray.report import tables
from bkray.report.comparison import Compared, compared, plain, winner
from bkray.report.comparison_words import sentences, speeds
from bkray.report.configurations import configurations
from bkray.report.findings import Findings
from bkray.report.page import page
from bkray.report.terminal import render_text
from bkray.sinks.parquet import ParquetSink
from bkray.stats import Comparison

OURS = [2.0, 2.01, 1.99, 2.02, 2.0, 1.98, 2.01, 2.0]
WORSE = [one + 0.1 + 0.002 * i for i, one in enumerate(OURS)]
ALIKE = [one + 0.001 * (-1) ** i for i, one in enumerate(OURS)]
SPREAD = [one + 0.1 * (-1) ** i for i, one in enumerate(OURS)]


def write_trial(
    folder: Path,
    number: int,
    arm: str,
    seed: int,
    loss: float | None,
    *,
    outcome: str = "ok",
    lr: float = 0.005,
    measured: Mapping[str, float] | None = None,
) -> None:
    trial = folder / "trials" / f"{number:04d}"
    trial.mkdir()
    (trial / "proposal.json").write_text(json.dumps({"number": number, "arm": arm}))
    sink = ParquetSink(trial)
    sink(
        TrialStarted(
            trial_id=trial.name,
            sweep="compare",
            arm=arm,
            seed=seed,
            attempt=1,
            config={"model.n_seq": 512, "optimizer.lr": lr},
            n_params=1000,
            causal=True,
            data_hash="d",
        )
    )
    if measured is not None:
        sink(Measured(step=1, metrics=measured))
    if outcome != "running":
        summary = {"final_val_loss_nats": loss, "steps": 10}
        sink(TrialEnded(step=10, outcome=outcome, reason="", summary=summary))
    sink.close()


def of_lengths(over: float) -> dict[str, float]:
    return {
        f"speed/seq{n}/{kind}_{name}": value
        for n in (2048, 8192)
        for kind in ("train", "eval", "stream")
        for name, value in {
            "over_reference": over * n / 2048,
            "over_reference_least": 0.9 * over * n / 2048,
            "over_reference_most": 1.5 * over * n / 2048,
            "rounds": 1.0 if kind == "eval" else 3.0,
            "microseconds_per_token": 20.0 * over,
            "reference_microseconds_per_token": 20.0,
            "memory_mib": 300.0,
            "reference_memory_mib": 200.0,
        }.items()
    }


def made(
    folder: Path, losses: Mapping[str, Sequence[float | None]], outcome: str = "diverged"
) -> Path:
    """Write a comparison; a loss of ``None`` is a trial that ended as ``outcome``."""
    write_record(folder, swept=[], objectives=[LOSS], name="compare", arms=["search-bk-lr-0.005"])
    write_trial(folder, 0, "speed-attention", 10**6, 5.0, measured=of_lengths(3.0))
    number = 1
    for name in losses:
        for lr, loss in ((0.0017, 2.3), (0.005, 2.1), (0.015, 2.2)):
            write_trial(folder, number, f"search-{name}-lr-{lr:.2g}", 10**6, loss, lr=lr)
            number += 1
    for name, own in losses.items():
        for seed, value in enumerate(own):
            ended = outcome if value is None else "ok"
            write_trial(folder, number, name, seed, value, outcome=ended)
            number += 1
    return folder


def of(folder: Path) -> Compared:
    found = compared(folder, tables.collect(folder))
    assert found is not None
    return found


def against(found: Compared, name: str) -> Comparison:
    (one,) = [one.against_ours for one in found.families if one.name == name]
    assert one is not None
    return one


def test_each_family_gets_its_verdict(tmp_path: Path) -> None:
    losses = {"bk": OURS, "attention": WORSE, "mamba": ALIKE, "linear_recurrence": SPREAD}
    found = of(made(tmp_path / "s", losses))
    assert [one.name for one in found.families][:2] == ["bk", "mamba"]
    verdicts = {one.name: against(found, one.name).verdict for one in found.families[1:]}
    assert verdicts == {"attention": "winner", "mamba": "tie", "linear_recurrence": "undecided"}
    assert {one.name: winner(one) for one in found.families if winner(one)} == {"attention": "bk"}
    assert against(found, "linear_recurrence").further_seeds > 0
    assert against(found, "attention").p == 2 / 256
    assert found.families[0].against_ours is None
    assert found.families[0].rates == ((0.0017, 2.3), (0.005, 2.1), (0.015, 2.2))


@pytest.mark.parametrize("outcome", ["diverged", "oom", "failed"])
def test_what_came_to_no_loss_is_counted_as_lost(tmp_path: Path, outcome: str) -> None:
    losses: dict[str, list[float | None]] = {"bk": [*OURS], "attention": [None, *WORSE[1:]]}
    found = of(made(tmp_path / "s", losses, outcome))
    rival = next(one for one in found.families if one.name == "attention")
    assert (rival.n, rival.n_lost, rival.loss) == (8, 1, None)
    assert against(found, "attention").n == 8
    assert winner(rival) == "bk"


def test_a_seed_that_still_runs_is_no_loss(tmp_path: Path) -> None:
    losses: dict[str, list[float | None]] = {"bk": [*OURS], "attention": [*WORSE[:3], None]}
    found = of(made(tmp_path / "s", losses, "running"))
    assert (against(found, "attention").n, against(found, "attention").further_seeds) == (3, 3)


def test_before_the_comparison_there_are_speeds(tmp_path: Path) -> None:
    found = of(made(tmp_path / "s", {}))
    assert found.families == () and len(found.speeds) == 6
    first = found.speeds[0]
    assert (first.rival, first.n_seq, first.kind, first.over_ours) == (
        *("attention", 2048, "train"),
        3.0,
    )
    assert first.least == pytest.approx(2.7) and (first.most, first.rounds) == (4.5, 3)
    assert "Families" not in render_text([], (), Findings(compared=found))


def test_speeds_without_rounds_are_told_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", {})
    newer = ("_least", "_most", "_rounds")
    older = {name: one for name, one in of_lengths(7.0).items() if not name.endswith(newer)}
    write_trial(folder, 1, "speed-mamba", 10**6, 5.0, measured=older)
    assert speeds(of(folder))["training step"][-2:] == ["7", "28"]


def test_terminal_page_and_json_carry_the_verdicts(tmp_path: Path) -> None:
    losses = {"bk": OURS, "attention": WORSE, "linear_recurrence": SPREAD}
    folder = made(tmp_path / "s", losses)
    found, rows = of(folder), tables.collect(folder)
    objectives = tables.objectives(folder)
    said = render_text(rows, objectives, Findings(compared=found))
    assert said.count("They want a fresh test of them alone") == 1
    assert "bk wins" in said and "undecided" in said and "search-" not in said
    line = next(one for one in said.splitlines() if one.startswith("attention  8192"))
    assert "12 (10.8..18)" in line and "12 (one pass)" in line
    record: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    ranked = configurations(rows, objectives)
    html = page(record, rows, objectives, ranked, [], Findings(compared=found))
    assert "bk wins" in html and "Speed: time of a rival over that of bk" in html
    data = json.loads(json.dumps(plain(found), allow_nan=False))
    assert [one["winner"] for one in data["families"]] == [None, None, "bk"]
    assert data["speeds"][0]["over_ours"] == 3.0


def test_a_rate_at_the_edge_is_said(tmp_path: Path) -> None:
    found = of(made(tmp_path / "s", {"bk": OURS}))
    assert not any("edge" in words for words in sentences(found))
    edge = [one for one in found.families if math.isclose(one.learning_rate, 0.005)]
    assert edge and not edge[0].rate_is_at_the_edge


def test_other_sweeps_have_no_comparison(tmp_path: Path) -> None:
    write_record(tmp_path / "s")
    assert compared(tmp_path / "s", tables.collect(tmp_path / "s")) is None
