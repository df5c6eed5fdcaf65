"""The ladder in words and as the guides print it, and what is said of the learning rate."""

import io
from pathlib import Path

import pytest
from made_ladder import LENGTHS, rung, write_ladder, write_rungs
from rich.console import Console

from bkray.report.findings import Findings
from bkray.report.ladder import Ladder, ladder, plain
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
    text = render_text(collect(sweep), objectives(sweep), Findings(of(sweep)))
    assert "Length ladder\nseq_len" in text
    assert "131072   DIVERGED           45      3.45 +- 1.23" in text
    assert "Longest stable length: 128 tokens; the next length that diverged: 131,072." in text


def test_a_terminal_shows_it_too(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    write_rungs(sweep, rung(128))
    out = io.StringIO()
    Console(file=out, width=200).print(
        render(collect(sweep), objectives(sweep), Findings(of(sweep)))
    )
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


@pytest.mark.parametrize(
    ("at_the_longest", "ends"),
    [
        ([0.1, -0.1, 0.2], "95% interval -0.1000 to +0.2000 over 3 seeds at 512: flat."),
        ([0.1, 0.2, 0.3], "95% interval +0.1000 to +0.3000 over 3 seeds at 512: context helps."),
        ([-0.1, -0.2], "95% interval -0.2000 to -0.1000 over 2 seeds at 512: context harms."),
        ([0.1], "; one seed tells no interval."),
    ],
)
def test_what_the_past_is_worth(tmp_path: Path, at_the_longest: list[float], ends: str) -> None:
    sweep = write_ladder(tmp_path / "s")
    for seed, worth in enumerate(at_the_longest):
        write_rungs(sweep, rung(128, context_worth_nats=0.5), seed=seed)
        write_rungs(sweep, rung(512, context_worth_nats=worth), seed=seed)
        write_rungs(sweep, rung(2048, loss=1e9), seed=seed)
    mean = sum(at_the_longest) / len(at_the_longest)
    words = said(sweep, "Worth of the N/2 tokens before")
    assert f"+0.5000 nats at 128, {mean:+.4f} nats at 512;" in words
    assert words.endswith(ends)
    heads, first, *_ = cells(of(sweep))
    assert first[heads.index("worth of N/2 tokens before, nats")] == "0.5"
    numbers = plain(of(sweep))["results"]
    assert numbers["512"]["context_worth_nats"] == pytest.approx(mean)


def test_promises_stand_beside_what_was_measured(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **{"train.monitor": "birman_schwinger"})
    write_rungs(sweep, rung(128, spike_count=1.0))  # in 100 steps
    write_rungs(sweep, rung(512, gradient_norm_std=0.3, nan_count=2.0))
    words = said(sweep, "The guides' promises, monitor on")
    assert "5 spikes per 1,000 steps: 10 at 128, not kept" in words
    assert "under 20% of its mean: 15.0% at 512, kept" in words
    assert "no NaN up to 512: at most 2 steps, not kept" in words


def test_what_diverged_keeps_no_promise(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    write_rungs(sweep, rung(128, spike_count=0.1, gradient_norm_std=0.41))
    early = rung(512, loss=1e9, steps=3.0, gradient_norm=50.0, gradient_norm_std=0.0)
    write_rungs(sweep, early)
    words = said(sweep, "The guides' promises")
    assert "1 at 128, kept" in words
    assert "20.5% at 128, not kept" in words
    assert "no NaN up to 128: at most 0 steps, kept" in words
    assert words.endswith("broken by what diverged at 512.")
    alone = write_ladder(tmp_path / "alone")
    write_rungs(alone, early)
    assert said(alone, "The guides' promises").endswith("off: broken by what diverged at 512.")


def test_lengths_beyond_one_that_diverged_are_told_apart(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    for n_seq in LENGTHS:
        write_rungs(sweep, rung(n_seq, loss=1e9 if n_seq in (512, 8192) else 2.0))
    assert said(sweep, "Longest") == (
        "Longest stable length: 128 tokens; the next length that diverged: 512; beyond it "
        "diverged: 8,192; beyond it ok: 2,048, 32,768."
    )
    assert plain(of(sweep))["next_diverged_length"] == 512


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


def test_the_shortest_length_does_not_test_the_transfer(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **{"ladder.lr_rule": "transfer"})
    for seed in range(7):
        for lr, loss in ((0.01, 2.0), (0.03, 2.1), (0.003, 2.1)):
            near = rung(128, loss=loss + 0.001 * lr * seed)
            write_rungs(sweep, near, lr=lr, seed=seed, arm=f"seq-128-lr-{lr}")
        write_rungs(sweep, rung(256, loss=1e9), lr=0.01, seed=seed)
    assert of(sweep).transfer is None
    assert said(sweep, "Transfer").endswith(
        "not tested, the longest stable length is the shortest one."
    )


@pytest.mark.parametrize(("n_seeds", "verdict"), [(6, "did not hold"), (5, "undecided")])
def test_a_rate_that_diverges_where_another_does_not_did_not_transfer(
    tmp_path: Path, n_seeds: int, verdict: str
) -> None:
    sweep = write_ladder(tmp_path / "s", **{"ladder.lr_rule": "search"})
    for seed in range(n_seeds):
        for lr, near, far in ((0.003, 2.2, 2.0), (0.01, 2.1, 1e9), (0.03, 2.0, 1e9)):
            write_rungs(sweep, rung(128, loss=near), lr=lr, seed=seed, arm=f"seq-128-lr-{lr}")
            write_rungs(sweep, rung(512, loss=far), lr=lr, seed=seed, arm=f"seq-512-lr-{lr}")
    found = of(sweep).transfer
    assert found is not None
    assert (found.diverged, found.verdict, found.learning_rate) == (True, verdict, 0.03)
    assert "diverged at 512 tokens against 0.003 (which did not)" in said(sweep, "Transfer")


def test_a_rival_that_ran_out_of_memory_decides_nothing(tmp_path: Path) -> None:
    sweep = transferred(tmp_path, n_seeds=7, above=2.6, below=2.7)
    write_rungs(sweep, lengths=[512], lr=0.03, seed=7, arm="seq-512-lr-0.03", outcome="oom")
    found = of(sweep).transfer
    assert found is not None
    assert [one.learning_rate for one in found.neighbours] == [0.003]


def test_a_search_is_as_stable_as_its_most_stable_rate(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **{"ladder.lr_rule": "search"})
    for n_seq in LENGTHS[:4]:
        for lr, loss in ((0.003, 2.2), (0.01, 2.1), (0.03, 2.0 if n_seq == 128 else 1e9)):
            one = rung(n_seq, loss=1e9 if n_seq == 8192 else loss)
            write_rungs(sweep, one, lr=lr, arm=f"seq-{n_seq}-lr-{lr}")
    found = of(sweep)
    assert (found.longest_stable, found.next_diverged) == (2048, 8192)
    rates = [(line.n_seq, line.learning_rate) for line in found.main]
    assert rates[:3] == [(128, 0.03), (512, 0.01), (2048, 0.01)]
    write_rungs(sweep, rung(4096, loss=9.0), lr=0.03, arm="seq-4096-lr-0.03")
    found = of(sweep)  # of 4,096 one rate alone is known: no place in the fits
    assert [line.n_seq for line in found.main] == [128, 512, 2048, 8192]
    assert found.longest_stable == 4096


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
