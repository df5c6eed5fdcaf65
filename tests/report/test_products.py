"""Pairs of features beside the product of what each does alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_sweep import write_record, write_trial

from bkray.cli.look import show
from bkray.report import products
from bkray.report.products import Product, columns, missing, said
from bkray.report.ranking import kind
from bkray.report.render import write_report
from bkray.report.tables import COLUMNS, Row, collect

ARMS = ["none", "act", "length", "exit", "act+length", "exit+length"]
SPEEDS = {"none": 1.0, "act": 1.4, "length": 2.0, "exit": 1.5}
LOSSES = {"none": 3.0, "act": 3.1, "length": 3.2, "exit": 3.3, "act+length": 3.25}


def row(arm: str, speed: float | None, loss: float | None = 3.0, seed: int = 0) -> Row:
    known = {"trial_id": f"{arm}{seed}", "arm": arm, "seed": seed, "outcome": "ok"}
    numbers = {"speedup_measured": speed, "final_val_loss_nats": loss}
    return {**dict.fromkeys(COLUMNS), **known, "stop_reason": "", **numbers}


def ended(changed: Row, outcome: str, reason: str | None = "said") -> Row:
    return {**changed, "outcome": outcome, "stop_reason": reason}


def parts(seed: int = 0, by: float = 1.0) -> list[Row]:
    """Return the parts and ``none``, worse by 0.1 nats with every seed."""
    return [row(arm, by * speed, LOSSES[arm] + 0.1 * seed, seed) for arm, speed in SPEEDS.items()]


def only(rows: list[Row]) -> Product:
    (found,) = products.products(rows)
    return found


@pytest.mark.parametrize(
    ("together", "verdict"),
    [
        (2.8, "holds"),
        (3.5, "holds"),
        (2.67, "holds"),
        (2.65, "does not hold"),
        (1.9, "does not hold"),
    ],
)
def test_a_product_holds_down_to_five_percent_below_it(together: float, verdict: str) -> None:
    found = only([*parts(), row("act+length", together, 3.25)])
    assert (found.pair, found.n, found.verdict) == ("act+length", 1, verdict)
    assert (found.first, found.second, found.together) == (1.4, 2.0, together)
    assert found.product == pytest.approx(2.8)
    assert found.ratio == found.lowest == found.highest == pytest.approx(together / 2.8)
    assert found.loss_over_none == pytest.approx(0.25)


def test_ratios_and_losses_are_taken_seed_by_seed() -> None:
    """Speeds and losses drift with the seed; the pair's share of the product does not follow."""
    rows = [*parts(0), *parts(1, by=2.0), *parts(2)]
    rows += [row("act+length", 2.8, 3.3, 0), row("act+length", 5.6, 3.2, 1)]
    rows += [row("act+length", 2.1, 3.4, 2)]
    found = only(list(reversed(rows)))
    assert found.n == 3
    assert found.ratio == pytest.approx((1.0 + 0.5 + 0.75) / 3)
    assert found.lowest == pytest.approx(0.5)
    assert found.highest == pytest.approx(1.0)
    assert found.product == pytest.approx(2.8 * (1 + 4 + 1) / 3)
    assert found.loss_over_none == pytest.approx(0.2)


def test_a_seed_that_lacks_a_part_is_left_out_and_said() -> None:
    rows = [*parts(0), *parts(1), *parts(2)]
    rows += [row("act+length", speed, 3.25, seed) for seed, speed in enumerate((2.8, 0.1, 0.2))]
    rows[5] = ended(rows[5], "diverged")
    rows[-1] = ended(rows[-1], "oom")
    found = only(rows)
    assert rows[5]["arm"] == "act"
    assert (found.n, found.verdict, found.first) == (1, "holds", 1.4)
    assert missing(rows) == ["act seed=1 (diverged)", "act+length seed=2 (oom)"]
    assert "1 of 1" in said(rows)
    assert said(rows).endswith("Missing: act seed=1 (diverged), act+length seed=2 (oom).")


def test_nothing_is_claimed_where_every_seed_lacks_a_part() -> None:
    found = only([*parts(), ended(row("act+length", 9.0, 1.0), "diverged")])
    assert (found.n, found.verdict) == (0, "unknown")
    assert (found.ratio, found.product, found.loss_over_none) == (None, None, None)


def test_a_loss_without_none_and_a_speed_that_was_not_measured_are_unknown() -> None:
    rows = [*parts()[1:], row("act+length", 2.8), row("exit+length", None)]
    ours, unmeasured = products.products(rows)
    assert (ours.verdict, ours.loss_over_none) == ("holds", None)
    assert unmeasured.verdict == "unknown"
    assert missing(rows) == ["exit+length seed=0 (without speedup_measured)"]


def test_what_the_clock_says_of_two_equals_is_told() -> None:
    nothing_on = [row("none", speed, seed=seed) for seed, speed in enumerate((1.06, 0.93, 1.0))]
    rows = [*parts()[1:], *nothing_on, row("act+length", 2.8)]
    assert "measured 0.93 to 1.06 in place of 1." in said(rows)
    assert "in place of 1" not in said([*parts()[1:], row("act+length", 2.8)])


def test_what_still_runs_is_not_missing() -> None:
    rows = [*parts(), ended(row("act+length", None, None), "interrupted", None)]
    assert missing(rows) == []
    assert only(rows).verdict == "unknown"


def test_only_arms_whose_parts_are_arms_are_pairs() -> None:
    rows = [
        *parts(),
        row("a+b", 2.0),
        row("act+b", 2.0),
        row("act+exit+length", 3.0),
        row("", 1.0),
    ]
    assert products.products(rows) == []
    assert (said(rows), missing([ended(rows[0], "failed")])) == ("", [])
    assert list(columns([]).values()) == [[]] * 11


def write_ablation(folder: Path) -> Path:
    """``act+length`` is as fast as the product of its parts, ``exit+length`` is not, and of it
    the second seed diverged."""
    write_record(folder, name="ablation", swept=[], arms=ARMS, seeds=2)
    speeds = {**SPEEDS, "act+length": 2.75, "exit+length": 1.2}
    for i, arm in enumerate(ARMS):
        for seed in range(2):
            lost = arm == "exit+length" and seed == 1
            trial_id = write_trial(
                folder, 2 * i + seed, arm=arm, seed=seed, diverges_at=15 if lost else None
            )
            path = folder / "trials" / trial_id / "outcome.json"
            outcome: dict[str, Any] = json.loads(path.read_text())
            made = {"speedup_measured": speeds[arm], "final_val_loss_nats": LOSSES.get(arm, 3.4)}
            outcome["summary"] |= {} if lost else made
            path.write_text(json.dumps(outcome))
    return folder


def test_a_terminal_shows_where_the_product_holds_and_where_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(write_ablation(tmp_path / "sweep"))
    text = capsys.readouterr().out
    assert text.index("Leaderboard") < text.index("Combined speed")
    lines = text[text.index("Combined speed") :].splitlines()
    holds, fails = lines[2].split(), lines[3].split()
    assert holds[:5] == ["act+length", "1.4", "2", "2.8", "2.75"]
    assert holds[8:] == ["2", "0.25", "holds"]
    assert fails[:5] == ["exit+length", "1.5", "2", "3", "1.2"]
    assert fails[5:] == ["0.4", "0.4", "0.4", "1", "0.4", "does", "not", "hold"]
    assert "in 1 of 2" in text
    assert "Missing: exit+length seed=1 (diverged)." in text


def test_json_and_the_page_have_the_table_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_ablation(tmp_path / "sweep")
    show(sweep, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert [(one["pair"], one["verdict"]) for one in shown["products"]] == [
        ("act+length", "holds"),
        ("exit+length", "does not hold"),
    ]
    assert shown["products_missing"] == ["exit+length seed=1 (diverged)"]
    page = write_report(sweep).html.read_text()
    table = page[page.index('id="combined"') :]
    assert "does not hold" in table[: table.index("</table>")]
    assert "Missing: exit+length seed=1 (diverged)." in page


def test_a_sweep_without_pairs_shows_no_such_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_record(tmp_path / "sweep")
    write_trial(sweep, 0, arm="dense-1")
    show(sweep)
    assert "Combined speed" not in capsys.readouterr().out
    assert "Combined speed" not in write_report(sweep).html.read_text()


def test_none_is_the_dense_model_that_the_others_are_compared_with(tmp_path: Path) -> None:
    by_arm = {one["arm"]: one for one in collect(write_ablation(tmp_path / "sweep"))}
    assert (kind(by_arm["none"]), kind(by_arm["act"])) == ("dense", "other")
    assert by_arm["none"]["val_ppl_relative_to_dense"] == 1.0
    assert by_arm["length"]["speedup_relative_to_dense"] == 2.0
