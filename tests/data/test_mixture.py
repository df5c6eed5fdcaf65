"""The mixture: kinds in turn, each what it says, the same bytes every time."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from bkray.config import DataConfig
from bkray.data.corpora import read
from bkray.data.corpus import Corpus
from bkray.data.mixture import KINDS, PER_KIND, SEGMENT, mixture
from bkray.data.shards import prepare
from bkray.errors import DataError


@pytest.fixture(scope="module")
def library() -> Corpus:
    return read("stdlib")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read("mixture")


def segments(corpus: Corpus, split: str, kind: str) -> list[bytes]:
    text = corpus.text(split)
    starts = range(KINDS.index(kind) * SEGMENT, len(text), len(KINDS) * SEGMENT)
    return [text[start : start + SEGMENT] for start in starts]


def period(segment: bytes) -> int:
    return next(p for p in range(1, SEGMENT) if segment[p:] == segment[:-p])


def test_splits_hold_whole_turns_of_segments(corpus: Corpus) -> None:
    assert (corpus.segment, corpus.kinds) == (SEGMENT, KINDS) == (1025, KINDS)
    sizes = {split: len(text) for split, text in corpus.texts.items()}
    assert sizes == {"train": 1200 * 1025, "valid": 192 * 1025, "test": 192 * 1025}


def test_patterns_have_periods_from_2_to_8_and_are_new_in_each_segment(corpus: Corpus) -> None:
    found = [part for split in PER_KIND for part in segments(corpus, split, "patterns")]
    assert {period(part) for part in found} == set(range(2, 9))
    assert len(set(found)) > 0.95 * len(found), "short ones may meet by chance"
    assert len({byte for part in found for byte in part}) == 256
    assert any(len(set(part)) < period(part) for part in found), "a byte may come twice in one"


def test_text_is_from_the_same_split_of_the_library_and_spread_over_it(
    corpus: Corpus, library: Corpus
) -> None:
    for split, n_segments in PER_KIND.items():
        whole, parts = library.text(split), segments(corpus, split, "text")
        assert len(parts) == n_segments
        end = 0
        for part in parts:
            end = whole.index(part, end) + SEGMENT  # which fails where two overlap
        assert whole.startswith(parts[0]) and end == len(whole)


def test_uniform_bytes_are_uniform(corpus: Corpus) -> None:
    noise = np.frombuffer(b"".join(segments(corpus, "train", "uniform")), dtype=np.uint8)
    counts = np.bincount(noise, minlength=256)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 150 < chi_square < 380, "255 degrees of freedom: 255 on average, deviation 23"


def test_no_segment_comes_in_two_splits(corpus: Corpus) -> None:
    for kind in ("text", "uniform"):
        found = [part for split in PER_KIND for part in segments(corpus, split, kind)]
        assert len(set(found)) == len(found)


def test_patterns_and_noise_are_the_same_on_every_machine(corpus: Corpus) -> None:
    digest = hashlib.sha256()
    for split in PER_KIND:
        for kind in ("patterns", "uniform"):
            digest.update(b"".join(segments(corpus, split, kind)))
    assert digest.hexdigest() == (
        "478347758225c05379cda8311065a31839416bfa9e18c4ab8af6221ad72ab466"
    )


def test_a_library_too_short_for_it_is_an_error(library: Corpus) -> None:
    short = Corpus(name="short", source="", texts={**library.texts, "valid": b"x" * 65_599})
    with pytest.raises(DataError, match=r"needs 65600 bytes .* valid split, .* gives 65599"):
        mixture(short)


@pytest.mark.parametrize(("max_bytes", "n_segments"), [(1025, 1), (2049, 1), (4100, 4)])
def test_max_bytes_cuts_at_a_segment(max_bytes: int, n_segments: int, corpus: Corpus) -> None:
    cut = read("mixture", max_bytes=max_bytes)
    assert cut.text("train") == corpus.text("train")[: n_segments * 1025]
    assert cut.text("valid") == corpus.text("valid")
    assert (cut.segment, cut.kinds) == (corpus.segment, corpus.kinds)


def test_less_than_a_segment_is_an_error() -> None:
    with pytest.raises(DataError, match=r"max_bytes=1024 leaves no segment .* at least 1025"):
        read("mixture", max_bytes=1024)


def test_the_cache_keeps_segments_and_kinds(tmp_path: Path, corpus: Corpus) -> None:
    config = DataConfig(corpus="mixture")
    built, opened = prepare(config, 1024, tmp_path), prepare(config, 1024, tmp_path)
    for shards in (built, opened):
        assert (shards.segment, shards.kinds) == (1025, ("patterns", "text", "uniform"))
        assert shards.tokens("train").tobytes() == corpus.text("train")
    assert built.fingerprint == opened.fingerprint
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_a_window_longer_than_a_segment_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"n_seq=1025 does not fit .* use at most 1024"):
        prepare(DataConfig(corpus="mixture"), 1025, tmp_path)


def test_words_are_refused(tmp_path: Path) -> None:
    config = DataConfig(corpus="mixture", tokenizer="words")
    with pytest.raises(DataError, match=r"tokenizer=words does not apply to data\.corpus=mixture"):
        prepare(config, 64, tmp_path)
    assert not list(tmp_path.iterdir())
