"""The ladder in words and as the guides print it, and what is said of the learning rate."""

import io
from pathlib import Path

import pytest
from made_ladder import LENGTHS, rung, write_ladder, write_rungs
from rich.console import Console

from bkray.report.ladder import Ladder, ladder
from bkray.report.ladder_words import cells, columns, sentences
from bkray.report.tables import collect, objectives
from bkray.report.terminal import render, render_text


def of(sweep: Path) -> Ladder:
    found = ladder(sweep)
    assert found is not None
    return found


def said(sweep: Path, about: str) -> str:
    [sentence] = [words for words in sentences(of(sweep)) if words.startswith(about)]
    return sentence


def transferred(folder: Path, *, n_seeds: int, above: float, below: float) -> Path:
    """A rate that was best at 128, at 512 against one above and one below, by their losses."""
    sweep = write_ladder(folder / "s", **{"ladder.lr_rule": "transfer"})
    for seed in range(n_seeds):
        noise = 0.001 * seed
        write_rungs(sweep, rung(128, loss=3.0 + noise), lr=0.01, seed=seed)
        for lr, loss in ((0.01, 2.5), (0.03, above), (0.003, below)):
            arm = f"seq-512-lr-{lr}"
            write_rungs(sweep, rung(512, loss=loss + noise * lr), lr=lr, seed=seed, arm=arm)
    return sweep


def test_a_diverged_rung_reads_as_in_the_guides(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    write_rungs(sweep, rung(128, loss=2.0))
    norms = rung(131072, loss=1e9, gradient_norm=3.45, gradient_norm_std=1.23, spike_count=45.0)
    write_rungs(sweep, norms)
    shown = [line[:4] for line in cells(of(sweep))]
    assert shown == [
        ["seq_len", "loss / perplexity", "spikes", "grad norm"],
        ["128", "2.0000 / 7.39", "0", "2.00 +- 0.25"],
        ["131072", "DIVERGED", "45", "3.45 +- 1.23"],
    ]
    assert columns(of(sweep))["loss"] == [2.0, None]
    text = render_text(collect(sweep), objectives(sweep), of(sweep))
    assert "Length ladder\nseq_len" in text
    assert "131072   DIVERGED           45      3.45 +- 1.23" in text
    assert "Longest stable length: 128 tokens; diverged: 131,072." in text


def test_a_terminal_shows_it_too(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    write_rungs(sweep, rung(128))
    out = io.StringIO()
    Console(file=out, width=200).print(render(collect(sweep), objectives(sweep), of(sweep)))
    text = out.getvalue()
    assert "Length ladder" in text
    assert "Longest stable length: 128 tokens, the longest tried." in text


def test_several_rates_have_a_column_and_norms_of_the_potential_theirs(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    write_rungs(sweep, rung(128))
    heads = cells(of(sweep))[0]
    assert "lr" not in heads
    assert "schatten s1" not in heads
    write_rungs(sweep, rung(512, schatten_s1=1.5, condition_number=9.0), lr=0.1)
    heads, first, second = cells(of(sweep))
    assert {"lr", "schatten s1", "condition number"} <= set(heads)
    assert (first[heads.index("lr")], second[heads.index("lr")]) == ("0.01", "0.1")
    assert second[heads.index("schatten s1")] == "1.5"


def test_steps_and_time_are_shared_out(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    write_rungs(sweep, rung(128, steps=100, train_seconds=1.0))
    write_rungs(sweep, rung(512, steps=100, train_seconds=3.0))
    assert said(sweep, "Share").endswith("128 50% and 25%, 512 50% and 75%.")


def test_the_cold_start_is_said_in_nats(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    write_rungs(sweep, rung(128, loss=3.0, cold_start_nats=0.5))
    write_rungs(sweep, rung(512, loss=2.0, cold_start_nats=0.1))
    words = said(sweep, "Cold start")
    assert "0.5000 of 3.0000 nats at 128 tokens, 0.1000 of 2.0000 at 512" in words
    assert "changes by -1.0000 nats, of that cold start -0.4000" in words


def test_promises_stand_beside_what_was_measured(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **{"train.monitor": "birman_schwinger"})
    write_rungs(sweep, rung(128, spike_count=1.0))  # in 100 steps
    write_rungs(sweep, rung(512, gradient_norm_std=0.3, nan_count=2.0))
    words = said(sweep, "The guides' promises, monitor on")
    assert "5 spikes per 1,000 steps: 10 at 128, not kept" in words
    assert "under 20% of its mean: 15% at 512, kept" in words
    assert "no NaN up to 512: at most 2 steps, not kept" in words


@pytest.mark.parametrize(
    ("n_seeds", "above", "below", "verdict"),
    [
        (7, 2.6, 2.7, "held"),
        (7, 2.6, 1e9, "held"),  # one that diverged is worse
        (7, 2.4, 2.7, "did not hold"),
        (7, 2.4, 1e9, "did not hold"),
        (6, 2.6, 2.7, "undecided"),  # 2 / 2**6, twice, is above 0.05
        (1, 2.4, 2.7, "undecided"),
        (1, 1e9, 1e9, "undecided"),
    ],
)
def test_the_transfer_of_the_learning_rate(
    tmp_path: Path, n_seeds: int, above: float, below: float, verdict: str
) -> None:
    found = of(transferred(tmp_path, n_seeds=n_seeds, above=above, below=below)).transfer
    assert found is not None
    assert (found.n_seq, found.learning_rate, found.verdict) == (512, 0.01, verdict)
    assert [one.learning_rate for one in found.neighbours] == [0.003, 0.03]
    assert found.n_seeds_needed == 7


def test_the_transfer_is_said_with_its_seeds(tmp_path: Path) -> None:
    sweep = transferred(tmp_path, n_seeds=1, above=2.6, below=1e9)
    assert said(sweep, "Transfer") == (
        "Transfer of the learning rate: 0.01, the best at the shortest length, at 512 tokens "
        "against 0.003 (which diverged) and 0.03 (+0.1000 nats, p = 1): undecided with 1 seed, "
        "for fewer than 7 decide nothing."
    )


def test_a_given_rate_was_not_transferred(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    for n_seq in LENGTHS:
        write_rungs(sweep, rung(n_seq))
    assert of(sweep).transfer is None
    assert not any(words.startswith("Transfer") for words in sentences(of(sweep)))


def test_where_it_was_searched_each_length_has_its_best_rate(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **{"ladder.lr_rule": "search"})
    for n_seq, best in ((128, 0.01), (512, 0.03)):
        for lr in (0.01, 0.03):
            loss = 2.0 if lr == best else 3.0
            write_rungs(sweep, rung(n_seq, loss=loss), lr=lr, arm=f"seq-{n_seq}-lr-{lr}")
    found = of(sweep)
    assert [(line.n_seq, line.learning_rate) for line in found.main] == [(128, 0.01), (512, 0.03)]
    assert found.transfer is not None
    assert (found.transfer.learning_rate, found.transfer.verdict) == (0.01, "undecided")
