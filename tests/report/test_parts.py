"""Arms held against their references, seed by seed."""

from pathlib import Path

import pytest
from made_sweep import LOSS, write_record, write_trial

from bkray.report.parts import columns, said
from bkray.report.render import write_report
from bkray.report.tables import COLUMNS, Row, collect, objectives
from bkray.report.terminal import render_text


def row(arm: str, seed: int, loss: float | None, outcome: str = "ok") -> Row:
    known = {"arm": arm, "seed": seed, "outcome": outcome, "final_val_loss_nats": loss}
    return {**dict.fromkeys(COLUMNS), "n_params": len(arm), **known}


def arms(n_seeds: int, **levels: float) -> list[Row]:
    """Return arms at their levels, all of them moved alike by the seed."""
    return [
        row(name.replace("_", "-"), seed, level + (seed % 3) / 7)
        for name, level in levels.items()
        for seed in range(n_seeds)
    ]


def verdicts(rows: list[Row]) -> dict[str, str]:
    known = columns(rows)
    return dict(zip(known["arm"], known["verdict"], strict=True))


def test_arms_are_better_or_worse_than_their_reference() -> None:
    rows = arms(8, base=3.0, less=3.1, more=2.9, more_again=2.95)
    assert verdicts(rows) == {"less": "worse", "more": "better", "more-again": "worse"}
    known = columns(rows)
    assert known["against"] == ["base", "base", "more"]
    assert known["loss over it (nats)"] == pytest.approx([0.1, -0.1, 0.05])
    assert known["p"] == [2 / 2**8] * 3
    assert (known["parameters"], known["its parameters"]) == ([4, 4, 10], [4, 4, 4])
    assert said(rows).endswith("5% after Holm over 3 arms; a tie is within 0.02 nats.")


def test_few_seeds_decide_nothing() -> None:
    rows = arms(6, base=3.0, less=4.0, more=2.0)
    assert set(verdicts(rows).values()) == {"undecided"}
    assert "over 2 arms; a tie is within 0.02 nats; fewer than 7 decide nothing." in said(rows)
    assert columns(rows)["further seeds"] == [1, 1] and "fresh test" in said(rows)


def test_what_differs_by_chance_alone_is_undecided() -> None:
    rows = arms(8, base=3.0)
    rows += [row("other", seed, 3.0 + (seed % 3) / 7 + (-1) ** seed * 0.1) for seed in range(8)]
    assert verdicts(rows) == {"other": "undecided"}


@pytest.mark.parametrize(
    ("lost", "verdict"),
    [({"other"}, "worse"), ({"base"}, "better"), ({"base", "other"}, "undecided")],
)
@pytest.mark.parametrize("outcome", ["diverged", "oom", "failed"])
def test_what_came_to_no_loss_lost(lost: set[str], verdict: str, outcome: str) -> None:
    rows = [
        row(arm, seed, 3.0, outcome if arm in lost else "ok")
        for arm in ("base", "other")
        for seed in range(8)
    ]
    assert verdicts(rows) == {"other": verdict}


def test_one_seed_that_diverged_weighs_more_than_all_others() -> None:
    rows = [row("base", seed, 3.0) for seed in range(8)]
    rows += [row("other", seed, 2.0) for seed in range(7)] + [row("other", 7, None, "diverged")]
    known = columns(rows)
    assert (known["verdict"], known["loss over it (nats)"]) == (["undecided"], [None])


def test_seeds_without_an_answer_are_no_pairs() -> None:
    rows = [*arms(8, base=3.0, less=3.1), row("less", 8, 9.0), row("base", 9, 0.0)]
    rows += [row("less", 9, None, "running")]
    assert (columns(rows)["seeds"], verdicts(rows)) == ([8], {"less": "worse"})


def test_a_difference_that_is_small_for_sure_is_a_tie() -> None:
    rows = arms(8, base=3.0)
    rows += [row("other", seed, 3.0 + (seed % 3) / 7 + (-1) ** seed / 1e3) for seed in range(8)]
    assert verdicts(rows) == {"other": "tie"}


def test_without_a_base_there_is_no_table() -> None:
    assert columns(arms(8, none=3.0, act=2.0)) == {}
    assert columns(arms(8, base=3.0)) == {}
    assert said([]) == ""


def test_terminal_and_page_have_the_table(tmp_path: Path) -> None:
    sweep = write_record(
        tmp_path / "s", swept=(), objectives=(LOSS,), name="parts", arms=["base", "no-values"]
    )
    for number, arm in enumerate(("base", "no-values")):
        write_trial(sweep, number, arm=arm)
    text = render_text(collect(sweep), objectives(sweep))
    assert "Arms against their references\narm        against  parameters" in text
    assert "fewer than 6 decide nothing" in text
    page = write_report(sweep).html.read_text()
    assert 'id="arms"' in page
    assert "fewer than 6 decide nothing" in page
