"""The memory of a sweep: what it proposes, and what it lets Optuna know."""

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from standin import LOSS, SPEED, suggest

from bkray.cluster.ledger import Ledger
from bkray.cluster.samplers import SAMPLERS
from bkray.cluster.search import Proposal, Search
from bkray.errors import ConfigError, ResumeError
from bkray.overrides import Overrides
from bkray.sweep import Arm, Ended, Preset, Sweep, Trial, no_space


def stepped(trial: Trial) -> Overrides:
    trial.suggest_float("model.dropout", 0.0, 0.4, step=0.1)
    trial.suggest_categorical("optimizer.lr", [0.001, 0.01, 0.1])
    return {}


def two_depths(base: Overrides) -> list[Arm]:
    return [Arm(name=f"dense-{n}", overrides={"model.n_layers": n}) for n in (1, 2)]


def search(
    sampler: str = "random",
    n_trials: int | None = 12,
    overrides: Overrides | None = None,
    seed: int = 3,
    **sweep: Any,
) -> Search:
    given = {"space": suggest, "objectives": (LOSS, SPEED), "presets": {}, "name": "t"} | sweep
    return Search(
        sweep=Sweep(**given),
        preset=Preset(trials=4),
        overrides=overrides or {},
        sampler=sampler,
        seed=seed,
        n_trials=n_trials,
    )


@contextmanager
def opened(folder: Path, asked: Search) -> Iterator[Ledger]:
    folder.mkdir(exist_ok=True)
    ledger = Ledger(folder, asked)
    try:
        yield ledger
    finally:
        ledger.close()


def values_of(proposal: Proposal) -> list[float]:
    loss = (math.log10(proposal.config.optimizer.lr) + 2) ** 2
    return [loss, 1.0 + (proposal.config.model.dropout or 0.0)]


def run_all(ledger: Ledger, at_most: int = 1000) -> list[dict[str, Any]]:
    seen = []
    while len(seen) < at_most and (proposal := ledger.ask()) is not None:
        seen.append(proposal.overrides)
        ledger.tell(proposal, values_of(proposal), "ok")
    return seen


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="t", storage=f"sqlite:///{folder / 'study.db'}")


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "qmc", "random"])
def test_another_seed_gives_other_proposals(tmp_path: Path, sampler: str) -> None:
    runs = []
    for seed in (0, 1):
        with opened(tmp_path / str(seed), search(sampler, n_trials=3, seed=seed)) as ledger:
            runs.append(run_all(ledger))
    assert all(a != b for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_ledger_proposes_what_an_undisturbed_one_of_equal_seed_does(
    tmp_path: Path, sampler: str
) -> None:
    asked = search(sampler, space=stepped if sampler == "grid" else suggest, rivals=two_depths)
    with opened(tmp_path / "whole", asked) as ledger:
        whole = run_all(ledger)
    resumed: list[dict[str, Any]] = []
    for portion in (1, 6, 5, 100):  # the last proposal of each portion dies with its process
        with opened(tmp_path / "parts", asked) as ledger:
            resumed += run_all(ledger, portion)
            lost = ledger.ask()
        assert lost is None or lost.overrides == whole[len(resumed)]
    assert resumed == whole
    assert len(whole) == 2 + 12


def test_a_proposal_whose_process_died_while_asking_is_asked_again(tmp_path: Path) -> None:
    with opened(tmp_path / "whole", search("qmc")) as ledger:
        whole = run_all(ledger)
    with opened(tmp_path / "parts", search("qmc")) as ledger:
        first = run_all(ledger, 5)
    study_of(tmp_path / "parts").ask()  # a row without its proposal
    with opened(tmp_path / "parts", search("qmc")) as ledger:
        assert first + run_all(ledger) == whole


def test_a_result_written_down_but_not_told_to_optuna_is_told_on_return(tmp_path: Path) -> None:
    with opened(tmp_path, search(n_trials=2)) as ledger:
        run_all(ledger, 1)
    database = sqlite3.connect(tmp_path / "study.db")
    with database:
        database.execute("UPDATE trials SET state = 'RUNNING'")
        database.execute("DELETE FROM trial_values")
    database.close()
    with opened(tmp_path, search(n_trials=2)) as ledger:
        assert len(run_all(ledger)) == 1
    assert [row.state for row in study_of(tmp_path).trials] == [TrialState.COMPLETE] * 2


def test_rivals_come_first_and_stay_outside_the_study(tmp_path: Path) -> None:
    with opened(tmp_path, search(n_trials=2, rivals=two_depths)) as ledger:
        proposals = []
        while (proposal := ledger.ask()) is not None:
            proposals.append((proposal.number, proposal.arm, proposal.config.arm))
            ledger.tell(proposal, values_of(proposal), "ok")
    assert proposals == [
        (0, "dense-1", "dense-1"),
        (1, "dense-2", "dense-2"),
        (2, "", ""),
        (3, "", ""),
    ]
    assert len(study_of(tmp_path).trials) == 2


def deeper_while_well(base: Overrides, ended: Sequence[Ended]) -> list[Arm]:
    """One more layer than the deepest that went well, up to 4."""
    depths = [one.overrides["model.n_layers"] for one in ended if one.outcome == "ok"]
    deepest = max(depths)
    if len(depths) < len(ended) or deepest == 4:
        return []
    assert ended[-1].values[0] is not None
    return [Arm(name=f"dense-{deepest + 1}", overrides={"model.n_layers": deepest + 1})]


def following(n_answered: int, tmp_path: Path, last: str = "ok") -> list[tuple[int, str]]:
    """Tell the outcomes of so many proposals; return what was proposed after them."""
    asked = search(
        n_trials=0, space=no_space, rivals=two_depths, follow=deeper_while_well, objectives=(LOSS,)
    )
    for _ in range(n_answered):  # each by a ledger of its own: the last process ended
        with opened(tmp_path, asked) as ledger:
            proposal = ledger.ask()
            assert proposal is not None
            ledger.tell(proposal, [1.0], last if proposal.number == n_answered - 1 else "ok")
    with opened(tmp_path, asked) as ledger:
        return [(one.number, one.arm) for one in iter(ledger.ask, None)]


@pytest.mark.parametrize(
    ("n_answered", "rest"),
    [
        (0, [(0, "dense-1"), (1, "dense-2")]),
        (1, [(1, "dense-2")]),
        (2, [(2, "dense-3")]),
        (3, [(3, "dense-4")]),
        (4, []),
    ],
)
def test_what_follows_waits_for_all_that_was_handed_out(
    tmp_path: Path, n_answered: int, rest: list[tuple[int, str]]
) -> None:
    assert following(n_answered, tmp_path) == rest


def test_nothing_follows_where_the_last_one_diverged(tmp_path: Path) -> None:
    assert following(3, tmp_path, last="diverged") == []


def test_a_sweep_with_a_space_has_nothing_that_follows() -> None:
    with pytest.raises(ConfigError, match="leave one of them out"):
        search(follow=deeper_while_well)


def test_a_knob_that_does_nothing_in_a_rival_is_left_out_there(tmp_path: Path) -> None:
    def dense(base: Overrides) -> list[Arm]:
        return [Arm(name="dense", overrides={"model.depth": "dense"})]

    asked = search(base={"depth": "act"}, rivals=dense, overrides={"act_lambda": 0.02})
    (rival,) = asked.rivals()
    assert rival.config.model.depth == "dense"
    assert "model.act_lambda" not in rival.overrides
    with opened(tmp_path, asked) as ledger:
        run_all(ledger, 1)
        searched = ledger.ask()
    assert searched is not None
    assert searched.config.model.act_lambda == 0.02


def test_first_points_then_the_grid_then_nothing(tmp_path: Path) -> None:
    first = ({"model.dropout": 0.3, "lr": 0.1},)
    with opened(tmp_path, search("grid", None, space=stepped, first=first)) as ledger:
        seen = [(o["model.dropout"], o["optimizer.lr"]) for o in run_all(ledger)]
    assert seen[:2] == [(0.3, 0.1), (0.0, 0.001)]
    assert len(seen) == len(set(seen)) == 15  # the first point is one of the grid's


def test_a_first_point_may_leave_knobs_to_the_sampler_and_set_further_ones(
    tmp_path: Path,
) -> None:
    first = ({"model.dropout": 0.25, "model.n_layers": 3},)
    with opened(tmp_path, search("qmc", first=first)) as ledger:
        proposal = ledger.ask()
    assert proposal is not None
    assert proposal.config.model.dropout == 0.25
    assert proposal.config.model.n_layers == 3
    assert 1e-4 <= proposal.config.optimizer.lr <= 1e-1


def test_a_first_point_outside_the_space_is_refused(tmp_path: Path) -> None:
    with (
        opened(tmp_path, search(first=({"model.dropout": 0.7},))) as ledger,
        pytest.raises(ConfigError, match=r"model\.dropout=0\.7 lies outside"),
    ):
        ledger.ask()


def test_a_pinned_knob_is_not_searched(tmp_path: Path) -> None:
    asked = search(overrides={"dropout": 0.9}, first=({"model.dropout": 0.1},))
    assert asked.swept() == ["optimizer.lr"]
    with opened(tmp_path, asked) as ledger:
        seen = run_all(ledger)
    assert {o["model.dropout"] for o in seen} == {0.9}
    assert len({o["optimizer.lr"] for o in seen}) == len(seen)


def test_what_the_space_returns_wins_over_the_base_and_loses_to_the_user(tmp_path: Path) -> None:
    def space(trial: Trial) -> Overrides:
        return {"model.n_layers": 3, "model.d_model": 32}

    asked = search(space=space, base={"n_layers": 1, "d_model": 16}, overrides={"d_model": 8})
    with opened(tmp_path, asked) as ledger:
        proposal = ledger.ask()
    assert proposal is not None
    assert (proposal.config.model.n_layers, proposal.config.model.d_model) == (3, 8)


def test_a_typo_in_a_space_names_the_nearest_path(tmp_path: Path) -> None:
    def space(trial: Trial) -> Overrides:
        trial.suggest_float("model.droput", 0.0, 0.5)
        return {}

    with (
        opened(tmp_path, search(space=space)) as ledger,
        pytest.raises(ConfigError, match=r"model\.droput.*model\.dropout"),
    ):
        ledger.ask()


def test_a_space_that_forgets_to_return_is_told_so(tmp_path: Path) -> None:
    def space(trial: Trial) -> Overrides:
        return None  # type: ignore[return-value]

    with opened(tmp_path, search(space=space)) as ledger, pytest.raises(ConfigError, match="None"):
        ledger.ask()


def test_an_equal_configuration_is_answered_from_the_store(tmp_path: Path) -> None:
    def coin(trial: Trial) -> Overrides:
        trial.suggest_categorical("model.n_layers", [1, 2])
        return {}

    with opened(tmp_path, search(n_trials=9, space=coin)) as ledger:
        assert len(run_all(ledger)) == 2
        assert ledger.n_reused == 7
    rows = study_of(tmp_path).trials
    assert [row.state for row in rows] == [TrialState.COMPLETE] * 9
    assert all(row.values == rows[0].values for row in rows)


def test_an_equal_configuration_under_way_gets_its_answer(tmp_path: Path) -> None:
    def one(trial: Trial) -> Overrides:
        return {"model.n_layers": trial.suggest_categorical("model.n_layers", [2])}

    with opened(tmp_path, search(n_trials=3, space=one)) as ledger:
        first = ledger.ask()
        assert first is not None
        assert ledger.ask() is None
        ledger.tell(first, [1.0, 2.0], "ok")
    assert [row.values for row in study_of(tmp_path).trials] == [[1.0, 2.0]] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("outcome", ["ok", "diverged"])
def test_what_is_not_finite_reaches_optuna_as_worse_than_the_worst_seen(
    tmp_path: Path, bad: float | None, outcome: str
) -> None:
    with opened(tmp_path, search(n_trials=3)) as ledger:
        for values in ([5.0, 2.0], [7.0, 1.0]):
            proposal = ledger.ask()
            assert proposal is not None
            ledger.tell(proposal, values, "ok")
        proposal = ledger.ask()
        assert proposal is not None
        ledger.tell(proposal, [bad, bad], outcome)
    assert study_of(tmp_path).trials[2].values == [9.0, 0.0]


def test_a_diverged_trial_gains_nothing_by_its_early_losses(tmp_path: Path) -> None:
    with opened(tmp_path, search(n_trials=2)) as ledger:
        for values, outcome in (([5.0, 2.0], "ok"), ([1.0, 9.0], "diverged")):
            proposal = ledger.ask()
            assert proposal is not None
            ledger.tell(proposal, values, outcome)
    assert study_of(tmp_path).trials[1].values == [10.0, 0.0]


def test_the_worst_seen_counts_the_rivals(tmp_path: Path) -> None:
    with opened(tmp_path, search(n_trials=1, rivals=two_depths)) as ledger:
        for values, outcome in (([5.0, 2.0], "ok"), ([6.0, 1.0], "ok"), (None, "diverged")):
            proposal = ledger.ask()
            assert proposal is not None
            ledger.tell(proposal, values, outcome)
    assert study_of(tmp_path).trials[0].values == [7.0, 0.0]


@pytest.mark.parametrize(
    ("outcome", "values", "state"),
    [
        ("diverged", [math.nan, math.nan], TrialState.FAIL),  # nothing finite seen yet
        ("failed", None, TrialState.FAIL),
        ("oom", [1.0, 1.0], TrialState.FAIL),
        ("pruned", [3.0, None], TrialState.PRUNED),
        ("pruned", [3.0, 1.0], TrialState.COMPLETE),
        ("interrupted", None, TrialState.RUNNING),
    ],
)
def test_each_outcome_has_its_state(
    tmp_path: Path, outcome: str, values: list[float | None] | None, state: TrialState
) -> None:
    with opened(tmp_path, search(n_trials=1)) as ledger:
        proposal = ledger.ask()
        assert proposal is not None
        ledger.tell(proposal, values, outcome)
    assert study_of(tmp_path).trials[0].state == state


def test_an_interrupted_proposal_is_handed_out_again(tmp_path: Path) -> None:
    with opened(tmp_path, search(n_trials=1, rivals=two_depths)) as ledger:
        before = [ledger.ask() for _ in range(3)]
        for proposal in before:
            assert proposal is not None
            ledger.tell(proposal, None, "interrupted")
        assert ledger.ask() is None
    with opened(tmp_path, search(n_trials=1, rivals=two_depths)) as ledger:
        assert [ledger.ask() for _ in range(3)] == before


def test_other_objectives_do_not_share_a_study(tmp_path: Path) -> None:
    with opened(tmp_path, search()):
        pass
    with pytest.raises(ResumeError, match="objectives"):
        Ledger(tmp_path, search(objectives=(LOSS,)))


def test_proposals_are_plain_data(tmp_path: Path) -> None:
    with opened(tmp_path, search("tpe", n_trials=3)) as ledger:
        for overrides in run_all(ledger):
            assert json.loads(json.dumps(overrides)) == overrides


@pytest.mark.parametrize(("n_trials", "sampler"), [(-1, "tpe"), (None, "tpe"), (3, "best")])
def test_a_search_that_cannot_be_is_refused(n_trials: int | None, sampler: str) -> None:
    with pytest.raises(ConfigError):
        search(sampler, n_trials)
