"""Tables of a sweep: rows from files, ranking, the front against brute force, and its verdict."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bkray.errors import ConfigError
from bkray.report.ranking import front_verdict, label, leaderboard, pareto_front
from bkray.report.tables import COLUMNS, Row, collect, objectives, write_trials_parquet
from bkray.report.terminal import render, render_text
from bkray.sweep import Objective

LOSS = Objective(column="best_val_loss_nats", direction="minimize")
SPEED = Objective(column="speedup_measured", direction="maximize")
BOTH = (LOSS, SPEED)
SWEPT = ["model.act_threshold", "model.act_lambda"]


def write_sweep(folder: Path, swept: list[str] = SWEPT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [{"column": o.column, "direction": o.direction} for o in BOTH]
    arms = ["dense-1", "dense-2", "dense-4"]
    content = {"name": "act", "swept": swept, "objectives": wanted, "arms": arms}
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def write_trial(
    sweep: Path,
    trial_id: str,
    *,
    arm: str = "",
    seed: int = 0,
    attempt: int = 1,
    outcome: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    number: int | None = None,
) -> None:
    folder = sweep / "trials" / trial_id
    folder.mkdir(parents=True)
    content = {
        "trial_id": trial_id,
        "sweep": "act",
        "arm": arm,
        "seed": seed,
        "attempt": attempt,
        "config": {"model.n_seq": 128, **(config or {})},
        "n_params": 1000,
        "causal": True,
        "data_hash": "abc",
    }
    n_before = len(list((sweep / "trials").iterdir())) - 1
    proposal = {"number": n_before if number is None else number, "arm": arm, "overrides": {}}
    (folder / "proposal.json").write_text(json.dumps(proposal))
    (folder / "config.json").write_text(json.dumps(content))
    if outcome is not None:
        ended = {"attempt": attempt, "outcome": "ok", "stop_reason": "", "step": 40, "summary": {}}
        (folder / "outcome.json").write_text(json.dumps({**ended, **outcome}))


def act(threshold: float, lambda_: float) -> dict[str, float]:
    return {"model.act_threshold": threshold, "model.act_lambda": lambda_}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two dense arms and two ACT trials of seed 0, one ACT trial of seed 1, one still running."""
    folder = write_sweep(tmp_path / "sweep")
    for depth, loss, speed in ((1, 2.5, 4.0), (4, 2.0, 1.0)):
        summary = {"best_val_loss_nats": loss, "final_val_loss_nats": loss}
        summary["speedup_measured"] = speed
        write_trial(folder, f"d{depth}", arm=f"dense-{depth}", outcome={"summary": summary})
    for trial_id, loss, speed, seed in (("a1", 1.9, 2.0, 0), ("a2", 2.6, 3.0, 0), ("a3", 2, 2, 1)):
        summary = {"best_val_loss_nats": loss, "final_val_loss_nats": loss}
        summary |= {"speedup_measured": speed, "ponder_cost": 2.2, "avg_layers_executed": 2.0}
        config = act(0.9, 0.01 * seed)
        outcome = {"summary": summary}
        write_trial(folder, trial_id, seed=seed, config=config, outcome=outcome)
    write_trial(folder, "a4", config=act(0.5, 0.1))
    return folder


def test_a_row_has_the_columns_of_the_contract_and_the_swept_knobs(sweep: Path) -> None:
    rows = {row["trial_id"]: row for row in collect(sweep)}
    for row in rows.values():
        assert tuple(row) == (*COLUMNS, "param/model.act_threshold", "param/model.act_lambda")
    assert rows["a1"]["seq_len"] == 128
    assert rows["a1"]["steps"] == 40
    assert rows["a1"]["param/model.act_threshold"] == 0.9
    assert rows["d4"]["param/model.act_threshold"] is None
    assert rows["d4"]["ponder_cost"] is None


def test_a_trial_without_outcome_is_interrupted_without_reason(sweep: Path) -> None:
    row = next(row for row in collect(sweep) if row["trial_id"] == "a4")
    assert (row["outcome"], row["stop_reason"], row["steps"]) == ("interrupted", None, None)


def test_the_outcome_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    write_trial(folder, "a", attempt=2, outcome={"attempt": 1, "outcome": "failed"})
    (row,) = collect(folder)
    assert (row["attempt"], row["outcome"]) == (2, "interrupted")


def test_dense_arms_are_the_measure_of_their_own_seed(sweep: Path) -> None:
    rows = {row["trial_id"]: row for row in collect(sweep)}
    assert rows["d4"]["val_ppl_relative_to_dense"] == 1.0
    assert rows["d4"]["speedup_relative_to_dense"] == 1.0
    assert rows["a1"]["val_ppl_relative_to_dense"] == pytest.approx(math.exp(-0.1), rel=1e-12)
    assert rows["a1"]["speedup_relative_to_dense"] == 2.0
    assert rows["a3"]["val_ppl_relative_to_dense"] is None  # seed 1 has no dense arm
    assert rows["a4"]["val_ppl_relative_to_dense"] is None  # nothing measured yet


def test_a_deepest_arm_that_failed_is_not_replaced_by_a_shallower_one(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    summary = {"final_val_loss_nats": 2.0, "speedup_measured": 1.0}
    write_trial(folder, "d1", arm="dense-1", outcome={"summary": summary})
    write_trial(folder, "d2", arm="dense-2", outcome={"summary": summary})
    # the deepest has not started yet
    assert [row["val_ppl_relative_to_dense"] for row in collect(folder)] == [None, None]
    failed = {"outcome": "diverged", "summary": summary}
    write_trial(folder, "d4", arm="dense-4", outcome=failed)
    assert [row["val_ppl_relative_to_dense"] for row in collect(folder)] == [None] * 3


def test_rows_come_in_the_order_of_the_proposals(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    for trial_id, number in (("c", 2), ("z", 1), ("a", 10)):
        write_trial(folder, trial_id, number=number)
    assert [row["trial_id"] for row in collect(folder)] == ["z", "c", "a"]


def test_a_folder_without_sweep_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no sweep\.json; give a folder like runs/"):
        collect(tmp_path)


def test_objectives_are_read_back(sweep: Path) -> None:
    assert objectives(sweep) == BOTH


def test_parquet_holds_the_collected_rows(sweep: Path) -> None:
    table = pq.read_table(write_trials_parquet(sweep))
    assert table.to_pylist() == collect(sweep)
    assert [path.name for path in sweep.iterdir() if path.is_file()].count("trials.parquet") == 1
    assert not list(sweep.glob("*.tmp"))


def test_schema_is_the_same_whatever_the_trials_came_to(tmp_path: Path) -> None:
    swept = ["model.act_threshold", "model.n_heads", "model.mixer", "model.options.depth"]
    empty, full = (write_sweep(tmp_path / name, swept) for name in ("empty", "full"))
    config = {"model.act_threshold": 1, "model.n_heads": 4, "model.mixer": "bk"}
    config["model.options.depth"] = "deep"
    summary = {"best_val_loss_nats": 2, "tokens": 4096, "train_seconds": 3}
    write_trial(full, "a", config=config, outcome={"summary": summary})
    one, other = (pq.read_schema(write_trials_parquet(folder)) for folder in (empty, full))
    assert one.equals(other)
    types = dict(zip(one.names, one.types, strict=True))
    assert types["param/model.act_threshold"] == pa.float64()
    assert types["param/model.n_heads"] == types["steps"] == types["seed"] == pa.int64()
    assert types["param/model.mixer"] == types["outcome"] == pa.string()
    assert types["causal"] == pa.bool_()


def test_a_nan_stays_a_nan_in_parquet(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    write_trial(folder, "a", outcome={"summary": {"final_val_loss_nats": math.nan}})
    (value,) = pq.read_table(write_trials_parquet(folder))["final_val_loss_nats"].to_pylist()
    assert math.isnan(value)


def row(name: str, loss: Any, speed: Any, outcome: str = "ok", arm: str = "") -> Row:
    known = {"trial_id": name, "arm": arm, "seed": 0, "outcome": outcome, "stop_reason": ""}
    known |= {"best_val_loss_nats": loss, "speedup_measured": speed}
    knob = {"param/model.act_threshold": None if arm else 0.5}
    return {**dict.fromkeys(COLUMNS), **known, **knob}


def test_leaderboard_puts_verdict_first_then_the_first_objective() -> None:
    rows = [
        row("diverged-but-low", 0.1, 9.0, "diverged"),
        row("missing", None, 1.0),
        row("nan", math.nan, 1.0),
        row("worse", 3.0, 9.0),
        row("better", 2.0, 1.0),
        row("also-worse", 3.0, 8.0),
        row("running", None, None, "interrupted"),
        row("pruned", 2.5, 1.0, "pruned"),
    ]
    names = [r["trial_id"] for r in leaderboard(rows, BOTH)]
    assert names[:3] == ["better", "also-worse", "worse"]
    assert names[3:] == ["missing", "nan", "pruned", "diverged-but-low", "running"]
    assert leaderboard(rows, (SPEED,))[0]["trial_id"] == "worse"


def brute_front(rows: list[Row], objectives: tuple[Objective, ...]) -> set[str]:
    def values(r: Row) -> list[float] | None:
        signs = [1 if o.direction == "minimize" else -1 for o in objectives]
        found = [r[o.column] for o in objectives]
        if r["outcome"] != "ok" or any(v is None or not math.isfinite(v) for v in found):
            return None
        return [s * v for s, v in zip(signs, found, strict=True)]

    known = {r["trial_id"]: v for r in rows if (v := values(r)) is not None}
    return {
        name
        for name, mine in known.items()
        if not any(
            all(o <= m for o, m in zip(other, mine, strict=True)) and other != mine
            for other in known.values()
        )
    }


@pytest.mark.parametrize("seed", range(60))
def test_front_is_what_brute_force_finds(seed: int) -> None:
    """Few distinct values, so that ties are common; every tenth or so missing or not finite."""
    rng = np.random.default_rng(seed)
    odd = [None, math.nan, math.inf, -math.inf]
    wanted = (*BOTH, Objective(column="peak_memory_mib", direction="minimize"))
    wanted = wanted[: 1 + seed % 3]

    def value() -> Any:
        return odd[rng.integers(4)] if rng.random() < 0.1 else float(rng.integers(6))

    rows = []
    for i in range(int(rng.integers(0, 40))):
        outcome = str(rng.choice(["ok", "ok", "ok", "diverged"]))
        rows.append({**row(f"t{i:02d}", value(), value(), outcome), "peak_memory_mib": value()})
    front = [r["trial_id"] for r in pareto_front(rows, wanted)]
    assert len(front) == len(set(front))
    assert set(front) == brute_front(rows, wanted)
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    assert [r["trial_id"] for r in pareto_front(shuffled, wanted)] == front


def test_equal_points_are_both_on_the_front() -> None:
    assert len(pareto_front([row("a", 1.0, 1.0), row("b", 1.0, 1.0)], BOTH)) == 2


def test_an_objective_that_is_no_column_is_named() -> None:
    wanted = (Objective(column="val_loss", direction="minimize"),)
    with pytest.raises(ConfigError, match=r"val_loss.*best_val_loss_nats"):
        leaderboard([row("a", 1.0, 1.0)], wanted)


def test_verdict_counts_who_is_on_the_front_and_which_act_trials_have_a_dense_match() -> None:
    rows = [
        row("d1", 2.5, 4.0, arm="dense-1"),
        row("d4", 2.0, 1.0, arm="dense-4"),
        row("a1", 1.9, 2.0),
        {**row("a2", 2.5, 4.0), "param/model.act_threshold": 0.25},  # a tie is a match
        {**row("a3", 2.6, 3.0), "param/model.act_threshold": 0.75},
        row("a4", 1.0, 9.0, "diverged"),
    ]
    said = front_verdict(rows, BOTH)
    assert "Points on the Pareto front: 3, of them ACT 2, dense 1." in said
    assert "ACT trials finished: 3." in said
    matched, _, free = said.partition("Not so:")
    assert "2 (act_threshold=0.25 seed=0; act_threshold=0.75 seed=0)" in matched
    assert "1 (act_threshold=0.5 seed=0)" in free


def test_verdict_is_about_learned_length_where_that_was_tried() -> None:
    knobs = dict.fromkeys(("param/model.act_threshold", "param/model.act_lambda"))
    short = [
        {**row(f"a{n}", loss, 2.0), **knobs, "avg_predicted_length": 64.0, "arm": f"cut-{n}"}
        for n, loss in enumerate((2.4, 2.6))
    ]
    rows = [row("d1", 2.5, 4.0, arm="dense-1"), *short]
    said = front_verdict(rows, BOTH)
    assert "front: 2, of them length 1, dense 1. length trials finished: 2." in said
    assert "1 (cut-1 seed=0). Not so: 1 (cut-0 seed=0)" in said
    assert "of them ACT" in front_verdict([*rows, row("act", 2.0, 2.0)], BOTH)


def test_verdict_claims_nothing_without_rivals_or_without_act() -> None:
    assert "No dense arm finished" in front_verdict([row("a", 1.0, 1.0)], BOTH)
    assert "No ACT trial finished" in front_verdict([row("d", 1.0, 1.0, arm="dense-2")], BOTH)
    assert "front: 0" in front_verdict([], BOTH)


def test_a_trial_goes_by_its_arm_or_its_swept_knobs() -> None:
    assert label(row("d", 1.0, 1.0, arm="dense-2")) == "dense-2 seed=0"
    assert label(row("a", 1.0, 1.0)) == "act_threshold=0.5 seed=0"


def test_plain_lines_show_rank_numbers_and_outcomes(sweep: Path) -> None:
    text = render_text(collect(sweep), BOTH)
    lines = text.splitlines()
    assert lines[0] == "Leaderboard"
    heads = ["val loss (nats)", "ppl over dense", "layers", "speedup measured", "speedup estimate"]
    places = [lines[1].index(head) for head in heads]
    assert places == sorted(places)
    best = lines[2].split()
    assert best[:4] == ["1", "threshold=0.9", "lambda=0", "seed=0"]
    assert best[4] == "1.9"
    assert best[-1] == "ok"
    assert next(line for line in lines if "threshold=0.5" in line).endswith("running")
    front = text.split("Pareto front\n")[1]
    assert [line.split()[0] for line in front.splitlines()[1:3]] == ["ACT", "dense"]
    assert text.endswith(front_verdict(collect(sweep), BOTH))


def test_a_terminal_shows_the_same_cells_as_the_plain_lines(sweep: Path) -> None:
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(render(collect(sweep), BOTH))
    shown = console.export_text().split()
    plain = render_text(collect(sweep), BOTH).split()
    assert [word for word in shown if word.strip("─")] == plain


def test_importing_the_tables_loads_no_torch_ray_mlflow_or_optuna() -> None:
    program = (
        "import sys, bkray.report.tables;"
        "print([m for m in ('torch', 'ray', 'mlflow', 'optuna', 'numba') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_trial_that_did_not_end_well_says_why() -> None:
    bad = row("bad", None, None, "failed") | {"stop_reason": "ValueError: no such shape"}
    said = render_text([row("good", 1.0, 1.0), bad], BOTH)
    assert said.endswith(f"failed: {label(bad)}: ValueError: no such shape")
    console = Console(file=io.StringIO(), width=200)
    console.print(render([row("good", 1.0, 1.0), bad], BOTH))
    assert "ValueError: no such shape" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "ok:" not in render_text([row("good", 1.0, 1.0)], BOTH)


def test_many_reasons_are_cut_and_counted() -> None:
    bad = [
        row(str(i), None, None, "diverged") | {"stop_reason": f"loss is nan at step {i}"}
        for i in range(25)
    ]
    assert render_text(bad, BOTH).endswith("... and 5 more")


def test_a_sweep_that_is_not_about_depth_is_not_told_about_it() -> None:
    neither = row("a", 1.0, 2.0) | {"param/model.act_threshold": None}
    assert front_verdict([neither], BOTH) == "Points on the Pareto front: 1."
