"""Which training length is the shortest that loses nothing, and whether quoted shares hold."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_generator import write_generator_trial, write_generators

from bkray.cli.look import show
from bkray.report.generator import answers, generator_lines, plain
from bkray.report.generator_words import columns, sentences
from bkray.report.render import write_report

SEEDS = 8


def written(
    folder: Path, accuracy: Callable[[int, int], float], n_seeds: int = SEEDS, **further: float
) -> Path:
    """Write a sweep over lengths 4 to 64; ``accuracy`` is of length and seed."""
    sweep = write_generators(folder)
    for seed in range(n_seeds):
        for length in (4, 8, 16, 32, 64):
            write_generator_trial(sweep, length, seed, accuracy=accuracy(length, seed), **further)
    return sweep


def by_length(length: int, seed: int) -> float:
    """Lengths from 16 on are alike but for noise; shorter ones lose much."""
    noise = ((seed * 7 + length) % 5 - 2) / 1000
    return (0.5 if length >= 16 else 0.3) + noise


def test_the_shortest_length_without_a_loss_is_found(tmp_path: Path) -> None:
    lines = generator_lines(written(tmp_path / "s", by_length))
    assert [line.length for line in lines] == [4, 8, 16, 32, 64]
    assert [line.verdict for line in lines] == ["loses", "loses", "no loss", "no loss", "longest"]
    (answer,) = answers(lines)
    assert (answer.longest, answer.shortest, answer.undecided) == (64, 16, ())
    assert any("against 64 is 16." in words for words in sentences(lines))


def test_few_seeds_decide_nothing_and_it_says_how_many_would(tmp_path: Path) -> None:
    lines = generator_lines(written(tmp_path / "s", by_length, n_seeds=3))
    assert {line.verdict for line in lines[:-1]} == {"undecided"}
    (answer,) = answers(lines)
    assert (answer.shortest, answer.undecided) == (64, (4, 8, 16, 32))
    assert answer.further_seeds == 5, "8 seeds are the fewest for four comparisons"
    assert any(
        "undecided at 4, 8, 16 and 32:" in s and "5 further seeds" in s for s in sentences(lines)
    )


def test_behind_a_length_that_loses_shorter_ones_are_no_answer(tmp_path: Path) -> None:
    def odd(length: int, seed: int) -> float:
        return by_length(64 if length == 4 else length, seed)

    (answer,) = answers(generator_lines(written(tmp_path / "s", odd)))
    assert answer.shortest == 16


def test_a_seed_that_collapsed_loses_against_any(tmp_path: Path) -> None:
    sweep = write_generators(tmp_path / "s")
    for seed in range(SEEDS):
        write_generator_trial(sweep, 64, seed, accuracy=0.2)
        write_generator_trial(sweep, 8, seed, outcome="diverged")
    short, long = generator_lines(sweep)
    assert (short.verdict, short.n_lost, short.mean("explained_variance")) == ("loses", 8, None)
    assert long.n_lost == 0
    assert any("8 of 8 at 8" in words for words in sentences([short, long]))


def test_trials_that_still_run_are_not_counted(tmp_path: Path) -> None:
    sweep = written(tmp_path / "s", by_length)
    write_generator_trial(sweep, 64, SEEDS, outcome="running")
    assert [len(line.ended) for line in generator_lines(sweep)] == [SEEDS] * 5
    assert generator_lines(sweep)[-1].mean("explained_variance") == 0.5


@pytest.mark.parametrize(
    ("explained", "said"), [(0.1, "too high"), (0.2, "holds"), (0.4, "too low")]
)
def test_a_quoted_share_is_held_against_what_was_seen(
    tmp_path: Path, explained: float, said: str
) -> None:
    sweep = write_generators(tmp_path / "s")
    write_generator_trial(sweep, 4, 0, explained=explained)
    write_generator_trial(sweep, 5, 0, explained=explained)
    assert [line.quoted for line in generator_lines(sweep)] == [said, "unknown"]


def test_the_last_evaluation_counts(tmp_path: Path) -> None:
    sweep = write_generators(tmp_path / "s")
    write_generator_trial(sweep, 4, 0)
    (line,) = generator_lines(sweep)
    assert line.mean("kl_nats") == 3.0 and line.mean("train_seconds") == 2.5


def test_generators_that_differ_otherwise_are_told_apart(tmp_path: Path) -> None:
    sweep = write_generators(tmp_path / "s")
    for latent in (32, 64):
        for length in (4, 8):
            config = {"generator.latent_dim": latent}
            write_generator_trial(sweep, length, 0, config=config)
    lines = generator_lines(sweep)
    assert [line.variant for line in lines] == ["latent_dim=32"] * 2 + ["latent_dim=64"] * 2
    assert len(columns(lines)["generator"]) == 4
    assert len(answers(lines)) == 2


def test_show_json_and_the_page_have_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = written(tmp_path / "s", by_length)
    show(sweep)
    shown = capsys.readouterr().out
    assert "Training length" in shown and "is 16" in shown and "85% to 90%" in shown
    show(sweep, as_json=True)
    data = json.loads(capsys.readouterr().out)["generator"]
    assert data == json.loads(json.dumps(plain(generator_lines(sweep))))
    assert data["shortest"][0]["shortest"] == 16
    page = write_report(sweep).html.read_text(encoding="utf-8")
    assert "<h2>Training length</h2>" in page and 'id="generator"' in page


def test_means_are_of_trials_that_took_all_their_steps(tmp_path: Path) -> None:
    sweep = write_generators(tmp_path / "s")
    for length in (8, 64):
        write_generator_trial(sweep, length, 0, explained=0.4)
    write_generator_trial(sweep, 8, 1, outcome="diverged", kl_nats=0.01)
    short, _ = generator_lines(sweep)
    assert (short.mean("kl_nats"), short.mean("explained_variance")) == (3.0, 0.4)
    assert (columns([short])["finished"], columns([short])["lost"]) == ([1], [1])


def test_a_posterior_that_collapsed_at_the_end_is_told(tmp_path: Path) -> None:
    sweep = write_generators(tmp_path / "s")
    for length, kl_nats in ((8, 0.04), (64, 0.06)):
        write_generator_trial(sweep, length, 0, kl_nats=kl_nats)
    lines = generator_lines(sweep)
    assert [line.n_collapsed for line in lines] == [1, 0]
    assert any(
        "collapsed posterior" in words and "1 of 1 at 8." in words for words in sentences(lines)
    )
