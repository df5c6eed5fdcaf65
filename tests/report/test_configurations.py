"""Seeds taken together: which trials are one configuration, its outcome, means and rank."""

import json
import math
from typing import Any

import pytest

from bkray.columns import COLUMNS
from bkray.events import OUTCOMES, outcome_over_seeds
from bkray.report.configurations import configurations, front, front_trials, plain
from bkray.report.ranking import leaderboard, pareto_front
from bkray.report.tables import Row
from bkray.report.terminal import render_text
from bkray.stats import Interval, bootstrap_interval
from bkray.sweep import Objective

LOSS = Objective(column="final_val_loss_nats", direction="minimize")
SPEED = Objective(column="speedup_measured", direction="maximize")
BOTH = (LOSS, SPEED)


def row(
    name: str,
    seed: int = 0,
    loss: float | None = 1.0,
    speed: float | None = 1.0,
    outcome: str = "ok",
    **more: Any,
) -> Row:
    """A trial; the first letter of its name is its knob, ``dense-N`` its arm."""
    arm = name if name.startswith("dense") else ""
    known = {"trial_id": f"{name}{seed}", "arm": arm, "seed": seed, "outcome": outcome}
    known |= {"stop_reason": "", LOSS.column: loss, SPEED.column: speed}
    knob = {"param/model.act_threshold": None if arm else ord(name[0]) / 100}
    return {**dict.fromkeys(COLUMNS), **known, **knob, **more}


def test_trials_that_differ_in_their_seed_alone_are_one() -> None:
    rows = [row("a", 0), row("b", 0), row("dense-2", 0), row("a", 1), row("dense-2", 1)]
    found = {one.label: [r["trial_id"] for r in one.rows] for one in configurations(rows, BOTH)}
    assert found == {
        "act_threshold=0.97": ["a0", "a1"],
        "act_threshold=0.98": ["b0"],
        "dense-2": ["dense-20", "dense-21"],
    }


def test_two_trials_of_one_seed_are_two_configurations() -> None:
    """A first point may set what the space does not ask for: no column tells the two apart."""
    rows = [row("a", 0, 1.0), row("a", 1, 1.2), row("a", 0, 2.0), row("a", 1, 2.2)]
    for number, one in enumerate(rows):
        one["trial_id"] = str(number)
    found = configurations(rows, BOTH)
    assert [[r["trial_id"] for r in one.rows] for one in found] == [["0", "1"], ["2", "3"]]


def test_what_has_other_seeds_lacks_none() -> None:
    found = configurations([row("a", 0), row("a", 1), row("b", 9), row("c", 1)], BOTH)
    outcomes = {one.rows[0]["trial_id"]: one.outcome for one in found}
    assert outcomes == {"a0": "ok", "b9": "ok", "c1": "interrupted"}


def test_rows_are_in_the_order_of_their_seeds() -> None:
    (one,) = configurations([row("a", 2), row("a", 0), row("a", 1)], BOTH)
    assert [r["seed"] for r in one.rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("outcomes", "whole"),
    [
        (("ok", "ok"), "ok"),
        (("ok", "pruned"), "pruned"),
        (("pruned", "interrupted", "ok"), "interrupted"),
        (("interrupted", "failed", "ok"), "failed"),
        (("failed", "oom"), "oom"),
        (("ok", "failed", "diverged", "interrupted"), "diverged"),
        (("diverged", "ok", "ok", "ok"), "diverged"),
    ],
)
def test_the_gravest_outcome_is_that_of_the_whole(outcomes: tuple[str, ...], whole: str) -> None:
    rows = [row("a", seed, outcome=outcome) for seed, outcome in enumerate(outcomes)]
    (one,) = configurations(rows, BOTH)
    assert one.outcome == one.row["outcome"] == whole
    assert one.n == sum(outcome != "interrupted" for outcome in outcomes)
    assert one.n_diverged == outcomes.count("diverged")


def test_a_configuration_that_lacks_seeds_does_not_win() -> None:
    """Few seeds are easier to win with; the time was up, or the sweep still runs."""
    rows = [row("a", seed, 2.0) for seed in range(3)] + [row("b", 0, 1.0)]
    found = configurations(rows, BOTH)
    assert [one.outcome for one in found] == ["ok", "interrupted"]
    assert [one.rows[0]["trial_id"] for one in front(found, BOTH)] == ["a0"]
    assert found[1].mean(LOSS.column) is None
    assert (found[1].n, found[1].row["stop_reason"]) == (1, None)


def test_every_outcome_has_its_place() -> None:
    assert [outcome_over_seeds([outcome]) for outcome in OUTCOMES] == list(OUTCOMES)


def test_a_mean_is_over_all_seeds_or_there_is_none() -> None:
    good = [row("a", seed, loss) for seed, loss in enumerate((1.0, 2.0, 4.5))]
    (one,) = configurations(good, BOTH)
    assert one.mean(LOSS.column) == bootstrap_interval([1.0, 2.0, 4.5])
    assert one.mean(LOSS.column) == Interval(2.5, 1.0, 4.5, 3)
    assert one.row[LOSS.column] == 2.5
    assert one.row["seed"] is None
    assert one.mean("ponder_cost") is None
    for bad in (
        row("a", 3, outcome="diverged"),
        row("a", 3, outcome="pruned"),
        row("a", 3, loss=None),
        row("a", 3, loss=math.nan),
        row("a", 3, loss=math.inf),
    ):
        (spoiled,) = configurations([*good, bad], BOTH)
        assert spoiled.mean(LOSS.column) is None
        assert spoiled.row[LOSS.column] is None


def test_one_seed_has_a_mean_and_no_interval() -> None:
    (one,) = configurations([row("a", 0, 1.5)], BOTH)
    assert one.mean(LOSS.column) == Interval(1.5, None, None, 1)


def test_means_rank_the_configurations_and_a_diverged_seed_comes_last() -> None:
    rows = [
        *(row("a", seed, loss) for seed, loss in enumerate((1.0, 5.0))),  # mean 3
        *(row("b", seed, loss) for seed, loss in enumerate((2.0, 2.2))),
        row("c", 0, 0.1),
        row("c", 1, None, None, "diverged"),
    ]
    found = configurations(rows, BOTH)
    assert [one.rows[0]["trial_id"] for one in found] == ["b0", "a0", "c0"]
    assert leaderboard(rows, BOTH)[0]["trial_id"] == "c0"  # the best trial is none to rely on
    assert [one.rows[0]["trial_id"] for one in front(found, BOTH)] == ["b0"]
    assert front_trials(found, BOTH) == ["b0", "b1"]


def test_with_one_seed_the_front_is_that_of_the_trials() -> None:
    rows = [row(name, 0, ord(name) % 5, ord(name) % 7) for name in "abcdefghij"]
    trials = [r["trial_id"] for r in pareto_front(rows, BOTH)]
    assert 1 < len(trials) < len(rows)
    assert front_trials(configurations(rows, BOTH), BOTH) == trials


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_kind_is_known_from_any_seed(order: tuple[int, int]) -> None:
    """A trial that has not ended has no ponder cost yet, and the threshold may not be swept."""
    unswept = {"param/model.act_threshold": None}
    rows = [row("a", 0, **unswept), row("a", 1, ponder_cost=2.0, **unswept)]
    (one,) = configurations([rows[i] for i in order], BOTH)
    assert one.kind == "ACT"
    (dense,) = configurations([row("dense-2", 0)], BOTH)
    assert (dense.kind, dense.arm) == ("dense", "dense-2")


def test_plain_data_goes_to_json() -> None:
    rows = [row("a", 0, 1.0), row("a", 1, 2.0), row("b", 0, 3.0, 0.5, "diverged")]
    first, second = json.loads(json.dumps(plain(configurations(rows, BOTH), BOTH)))
    assert first == {
        "label": "act_threshold=0.97",
        "arm": "",
        "kind": "ACT",
        "outcome": "ok",
        "stop_reason": "",
        "n": 2,
        "n_diverged": 0,
        "on_front": True,
        "seeds": [0, 1],
        "trial_ids": ["a0", "a1"],
        "means": {
            LOSS.column: {"mean": 1.5, "low": 1.0, "high": 2.0, "n": 2},
            SPEED.column: {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2},
        },
    }
    assert (second["on_front"], second["n_diverged"], second["means"]) == (False, 1, {})


def two_seeds() -> list[Row]:
    return [
        *(row("dense-2", seed, loss, 1.0) for seed, loss in enumerate((2.0, 2.1))),
        *(row("a", seed, loss, 2.0) for seed, loss in enumerate((1.0, 1.5))),
        row("b", 0, 1.1, 3.0),
        row("b", 1, None, None, "diverged"),
    ]


def test_with_seeds_a_line_is_a_configuration() -> None:
    lines = render_text(two_seeds(), BOTH).splitlines()
    head = ["rank", "configuration", "val loss (nats)", "95% interval", "ppl over dense"]
    head += ["layers", "speedup measured", "speedup estimate", "tokens/s", "n", "diverged"]
    table = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[1:5]]
    assert table[0] == [*head, "outcome"]
    cells = table[1:]
    assert cells[0][:4] == ["1", "act_threshold=0.97", "1.25", "1 to 1.5"]
    assert cells[0][-3:] == ["2", "0", "ok"]
    assert cells[1][:4] == ["2", "dense-2", "2.05", "2 to 2.1"]
    assert cells[2][:4] == ["3", "act_threshold=0.98", "-", "-"]
    assert cells[2][-3:] == ["2", "1", "diverged"]


def test_with_seeds_front_and_verdict_go_by_means() -> None:
    text = render_text(two_seeds(), BOTH)
    (only,) = text.split("Pareto front\n")[1].partition("\n\n")[0].splitlines()[1:]
    cells = [cell.strip() for cell in only.split("  ") if cell.strip()]
    assert cells == ["ACT", "act_threshold=0.97", "1.25", "1 to 1.5", "2", "2 to 2"]
    verdict = text.splitlines()[-1]
    assert verdict.startswith("Means over 2 seeds. Intervals are the bootstrap's, too narrow")
    assert "No mean where a seed did not end as ok." in verdict
    assert "Points on the Pareto front: 1, of them ACT 1, dense 0." in verdict
    assert "ACT configurations finished: 1." in verdict
    assert "Not so: 1 (act_threshold=0.97)." in verdict
    assert "seed=" not in text


def test_a_missing_mean_is_explained_where_one_is_missing() -> None:
    assert "No mean" not in render_text(two_seeds()[:4], BOTH)


def test_seeds_under_way_are_counted_as_they_are() -> None:
    running = row("b", 1, None, None, "interrupted", stop_reason=None)
    text = render_text([*two_seeds()[:5], running, row("c", 0)], BOTH)
    line = next(line for line in text.splitlines() if "0.98" in line)
    assert line.split()[-3:] == ["1", "0", "running"]
    assert "Means over 1 to 2 seeds." in text


def test_the_same_seed_of_all_is_shown_by_trials() -> None:
    text = render_text([row("a", 3), row("b", 3)], BOTH)
    assert "seed=3" in text
    assert "configuration" not in text
