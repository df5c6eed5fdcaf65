"""Mean, median, p95 and what a greatest length truncates, against numpy; tokens of each kind."""

import json
from pathlib import Path

import numpy as np
import pytest

from bkray.cli import app
from bkray.data.lengths import Lengths, counter, lengths
from bkray.errors import ConfigError, DataError


def of(counts: list[int], max_length: int) -> Lengths:
    return lengths(("x" * n for n in counts), max_length, len)


@pytest.mark.parametrize("n", [1, 2, 3, 20, 21, 1000])
def test_the_numbers_are_those_of_the_sorted_lengths(n: int) -> None:
    counts = [int(one) for one in np.random.default_rng(n).lognormal(3, 1, size=n)]
    seen = of(counts, 25)
    assert seen.n_items == n
    assert seen.mean == pytest.approx(np.mean(counts))
    assert seen.median == np.median(counts)
    assert seen.p95 == np.quantile(counts, 0.95, method="inverted_cdf")
    assert seen.max == max(counts)
    assert seen.share_truncated == np.mean(np.array(counts) > 25)
    cut = np.maximum(np.array(counts) - 25, 0).sum() / max(sum(counts), 1)
    assert seen.share_cut == pytest.approx(cut)


@pytest.mark.parametrize(
    ("n_long", "advice"),
    [(0, "fine"), (4, "fine"), (5, "sliding"), (20, "sliding"), (21, "retrain longer")],
)
def test_the_advice_follows_the_share_truncated(n_long: int, advice: str) -> None:
    assert advice in of([11] * n_long + [10] * (100 - n_long), 10).advice


def test_tokens_are_bytes_words_or_pieces(tmp_path: Path) -> None:
    text = "na\u00efve na\u00efve\nba"
    assert counter("bytes")(text) == 2 * 6 + 2 + 2
    assert counter("words")(text) == 4  # a line end is one
    pieces = tmp_path / "pieces.txt"
    pieces.write_text("ab\nabc\na\nb\n")
    count = counter(str(pieces))
    assert [count(one) for one in ("abcab", "abab", "c", "\u00ef", "")] == [2, 2, 1, 2, 0]


def test_half_a_surrogate_pair_is_three_bytes(tmp_path: Path) -> None:
    text = json.loads(r'"half \ud83d"')
    pieces = tmp_path / "pieces.txt"
    pieces.write_text("half\n")
    assert [counter(one)(text) for one in ("bytes", "words", str(pieces))] == [8, 2, 5]


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--max-length must be at least 1, got 0"):
        of([1], 0)
    with pytest.raises(DataError, match="no items"):
        of([], 1)
    with pytest.raises(DataError, match="bytes, words or a file"):
        counter("tokens")
    (tmp_path / "none").write_text("\n\n")
    with pytest.raises(DataError, match="has no pieces"):
        counter(str(tmp_path / "none"))


def test_the_verb_says_it_in_words_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "theorems.jsonl"
    items = [{"theorems": [{"text": "w " * n} for n in (100, 200, 300)]} for _ in range(4)]
    path.write_text("".join(json.dumps(one) + "\n" for one in items))
    words = ["lengths", str(path), "--max-length", "256", "--field", "theorems.text"]
    words += ["--tokenizer", "words"]
    assert app(words, standalone_mode=False) == 0
    said = capsys.readouterr().out
    assert "12 items, lengths in words" in said
    assert "mean 200.0, median 200, p95 300, max 300" in said
    assert "33.3% of the items" in said and "advice: retrain longer" in said
    assert app([*words, "--json"], standalone_mode=False) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["share_truncated"] == pytest.approx(1 / 3)
    assert found["advice"].startswith("retrain longer")
