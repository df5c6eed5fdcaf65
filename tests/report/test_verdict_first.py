"""A trial that diverged loses to every one that ended well, however low its loss once was."""

import json
import re
from pathlib import Path

import pytest
from made_sweep import write_record

from bkray.cli.look import show
from bkray.events import EvalDone, StepsDone, TrialEnded, TrialStarted
from bkray.report.configurations import configurations, front
from bkray.report.knobs import cells
from bkray.report.ranking import front_verdict, leaderboard, pareto_front
from bkray.report.render import write_report
from bkray.report.tables import collect, objectives
from bkray.sinks.parquet import ParquetSink

BEST = {"column": "best_val_loss_nats", "direction": "minimize"}
SPEED = {"column": "speedup_measured", "direction": "maximize"}
REASON = "loss is nan at step 40"
LOSSES = {"good": 2.0, "worse": 3.0, "liar": 0.01}
"""The liar diverges after its validation loss was by far the lowest."""


def write_trial(sweep: Path, number: int, name: str, seed: int, loss: float, outcome: str) -> None:
    trial = sweep / "trials" / f"{name}-{seed}"
    trial.mkdir()
    proposal = {"number": number, "arm": "", "overrides": {}}
    (trial / "proposal.json").write_text(json.dumps(proposal))
    sink = ParquetSink(trial)
    lrs = {"good": 0.1, "worse": 0.2, "liar": 0.3}
    sink(
        TrialStarted(
            trial_id=trial.name,
            sweep="act",
            arm="",
            seed=seed,
            attempt=1,
            config={"model.n_seq": 8, "optimizer.lr": lrs[name]},
            n_params=1,
            causal=True,
            data_hash="d",
        )
    )
    sink(
        StepsDone(
            step=40,
            tokens=40,
            loss_nats=(loss,) * 40,
            grad_norm=(1.0,) * 40,
            lr=0.1,
            window_seconds=0.1,
        )
    )
    sink(EvalDone(step=40, tokens=40, split="val", loss_nats=loss))
    summary = {
        "best_val_loss_nats": loss,
        "final_val_loss_nats": loss,
        "speedup_measured": 1 / loss,
    }
    reason = REASON if outcome == "diverged" else ""
    sink(TrialEnded(step=40, outcome=outcome, reason=reason, summary=summary))
    sink.close()


def write_sweep(folder: Path, seeds: int) -> Path:
    """Three configurations; of the liar the last seed alone diverges."""
    write_record(folder, swept=["optimizer.lr"], objectives=[BEST, SPEED], seeds=seeds)
    for i, (name, loss) in enumerate(LOSSES.items()):
        for seed in range(seeds):
            diverged = name == "liar" and seed == seeds - 1
            outcome = "diverged" if diverged else "ok"
            write_trial(folder, seeds * i + seed, name, seed, loss, outcome)
    return folder


@pytest.fixture(params=[1, 3], ids=["one seed", "three seeds"])
def sweep(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "sweep", request.param)


def test_trials_are_ranked_by_verdict_first(sweep: Path) -> None:
    rows, wanted = collect(sweep), objectives(sweep)
    assert min(rows, key=lambda row: row["best_val_loss_nats"])["trial_id"].startswith("liar")
    diverged = [row for row in rows if row["outcome"] == "diverged"]
    assert leaderboard(rows, wanted)[-1:] == diverged
    assert not [row for row in pareto_front(rows, wanted) if row in diverged]


def test_configurations_are_ranked_by_verdict_first(sweep: Path) -> None:
    wanted = objectives(sweep)
    found = configurations(collect(sweep), wanted)
    assert [one.label for one in found] == ["lr=0.1", "lr=0.2", "lr=0.3"]
    assert (found[-1].outcome, found[-1].mean("best_val_loss_nats")) == ("diverged", None)
    assert [one.label for one in front(found, wanted)] == ["lr=0.1"]
    said = front_verdict([one.row for one in found], wanted)
    assert said == "Points on the Pareto front: 1."
    lost = cells(found, ("param/optimizer.lr", "param/optimizer.lr"), "best_val_loss_nats")
    assert [(cell.x, cell.value is None, cell.n_lost) for cell in lost][-1] == (0.3, True, 1)


def test_a_terminal_shows_the_verdict_first_and_says_why(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(sweep)
    text = capsys.readouterr().out
    board = text.split("Pareto front")[0]
    ranked = re.findall(r"^\d+ +(lr=0\.\d)", board, re.MULTILINE)
    assert (ranked[0], ranked[-1]) == ("lr=0.1", "lr=0.3")
    assert "lr=0.3" not in text.split("Pareto front")[1].split("Points on")[0]
    assert re.search(rf"^diverged: lr=0.3 seed=\d: {REASON}$", text, re.MULTILINE)


def test_json_shows_the_verdict_first_and_says_why(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(sweep, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["trials"][-1]["outcome"], said["trials"][-1]["stop_reason"]) == (
        "diverged",
        REASON,
    )
    last = said["configurations"][-1]
    assert (last["outcome"], last["stop_reason"], last["on_front"]) == ("diverged", REASON, False)
    assert {trial_id.rpartition("-")[0] for trial_id in said["pareto_front"]} == {"good"}


def test_the_page_shows_the_verdict_first_and_says_why(sweep: Path) -> None:
    page = write_report(sweep).html.read_text()
    board = page[page.index('id="leaderboard"') :]
    board = board[: board.index("</table>")]
    outcomes = re.findall(r"<td[^>]*>(ok|diverged)</td>", board)
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes[-1] == "diverged"
    reasons = page[page.index('id="reasons"') :]
    assert REASON in reasons[: reasons.index("</table>")]
