"""What holds for every corpus, whatever it was read from, up to tokens in the cache."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.config import DataConfig
from bkray.data.corpora import SPLITS, Corpus, read
from bkray.data.shards import prepare
from bkray.errors import DataError

N_SEQ = 64
_ROOT = Path(__file__).resolve().parents[2]
REAL_TEXT = _ROOT / os.environ.get("BKRAY_TEST_DATA", "../shared/data")

LINES = [f"line {i} costs {i * i} € , naïve {'x' * (i % 7)}\n" for i in range(800)]


def one_file(folder: Path) -> str:
    (folder / "book.txt").write_text("".join(LINES), encoding="utf-8")
    return str(folder / "book.txt")


def many_files(folder: Path) -> str:
    for i in range(100):
        place = folder / f"part-{i % 3}" / f"{i}.txt"
        place.parent.mkdir(exist_ok=True)
        place.write_text("".join(LINES[8 * i : 8 * i + 8]), encoding="utf-8")
    return str(folder)


def few_files(folder: Path) -> str:
    for i in range(2):
        text = "".join(LINES[400 * i : 400 * i + 400])
        (folder / f"{i}.md").write_text(text, encoding="utf-8")
    return str(folder)


def wikitext_layout(folder: Path) -> str:
    for name, lines in (("train", LINES[:600]), ("valid", LINES[600:700]), ("test", LINES[700:])):
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    return str(folder)


def wikitext_parquet(folder: Path) -> str:
    parts = {
        "train-00000-of-00002": LINES[:300],
        "train-00001-of-00002": LINES[300:600],
        "validation-00000-of-00001": LINES[600:700],
        "test-00000-of-00001": LINES[700:],
    }
    for name, lines in parts.items():
        pq.write_table(pa.table({"text": lines}), folder / f"{name}.parquet")
    return str(folder)


def without_train(folder: Path) -> str:
    folder = folder / "wikitext-2"
    folder.mkdir()
    (folder / "valid.txt").write_text("".join(LINES[:300]), encoding="utf-8")
    (folder / "test.txt").write_text("".join(LINES[300:]), encoding="utf-8")
    return str(folder)


def stdlib(folder: Path) -> str:
    return "stdlib"


def mixture(folder: Path) -> str:
    return "mixture"


def documents(folder: Path) -> str:
    return "documents"


def recall(folder: Path) -> str:
    return "recall"


def tinyshakespeare(folder: Path) -> str:
    return _real("tinyshakespeare/input.txt")


def wikitext2_small(folder: Path) -> str:
    return _real("wikitext-2")


def _real(name: str) -> str:
    if not (REAL_TEXT / name).exists():
        pytest.skip(f"no real text at {REAL_TEXT / name}: set BKRAY_TEST_DATA")
    return str(REAL_TEXT / name)


CORPORA = [one_file, many_files, few_files, wikitext_layout, wikitext_parquet, without_train]
CORPORA += [stdlib, documents, mixture, recall, tinyshakespeare, wikitext2_small]


@pytest.fixture(params=CORPORA, ids=lambda make: make.__name__)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name or path of one corpus."""
    make: Callable[[Path], str] = request.param
    (tmp_path / "corpus").mkdir()
    return make(tmp_path / "corpus")


@pytest.fixture
def corpus(place: str) -> Corpus:
    return read(place)


def test_every_split_is_text_or_whole_segments(corpus: Corpus) -> None:
    assert {"train", "valid"} <= set(corpus.texts) <= set(SPLITS)
    assert not corpus.kinds or corpus.segment is not None
    for split in corpus.texts:
        assert len(corpus.text(split)) > N_SEQ
        if corpus.segment is None:
            corpus.text(split).decode()
        else:
            assert len(corpus.text(split)) % (corpus.segment * max(1, len(corpus.kinds))) == 0


def test_training_text_is_the_largest_part(corpus: Corpus) -> None:
    sizes = {split: len(text) for split, text in corpus.texts.items()}
    assert sizes["train"] == max(sizes.values())


def test_no_split_holds_a_stretch_of_another(corpus: Corpus) -> None:
    middle = {split: text[len(text) // 2 :][:400] for split, text in corpus.texts.items()}
    for split, stretch in middle.items():
        assert all(stretch not in corpus.text(other) for other in corpus.texts if other != split)


def test_reading_again_gives_the_same_text(corpus: Corpus, place: str) -> None:
    again = read(place)
    assert again == corpus
    assert again.fingerprint == corpus.fingerprint


def test_max_bytes_cuts_the_training_text_alone_and_at_a_character_or_segment(
    corpus: Corpus, place: str
) -> None:
    whole = corpus
    least = max(1024, whole.segment or 0)
    for max_bytes in range(least + 8, least + 16):
        cut = read(place, max_bytes=max_bytes)
        train = cut.text("train")
        assert max_bytes - (whole.segment or 4) < len(train) <= max_bytes
        assert whole.text("train").startswith(train)
        if whole.segment is None:
            train.decode()
        else:
            assert len(train) % whole.segment == 0
        assert {**cut.texts, "train": b""} == {**whole.texts, "train": b""}
        assert cut.fingerprint != whole.fingerprint


def test_a_split_it_has_not_is_an_error_that_names_those_it_has(corpus: Corpus) -> None:
    missing = "test" if "test" not in corpus.texts else "holdout"
    with pytest.raises(DataError, match=f"no {missing} split.*train, valid"):
        corpus.text(missing)


def test_bytes_come_back_exactly_from_the_cache(
    corpus: Corpus, place: str, tmp_path: Path
) -> None:
    shards = prepare(DataConfig(corpus=place), N_SEQ, tmp_path / "cache")
    assert shards.vocab_size == 256
    assert (shards.segment, shards.kinds) == (corpus.segment, corpus.kinds)
    for split, text in corpus.texts.items():
        assert shards.tokens(split).dtype == np.uint8
        assert shards.vocabulary.decode(shards.tokens(split)) == text
        assert shards.n_tokens[split] == len(text)


def test_known_words_come_back_from_the_cache(corpus: Corpus, place: str, tmp_path: Path) -> None:
    config = DataConfig(corpus=place, tokenizer="words", vocab_size=300)
    if corpus.segment is not None:
        with pytest.raises(DataError, match=r"use data\.tokenizer=bytes"):
            prepare(config, N_SEQ, tmp_path / "cache")
        return
    shards = prepare(config, N_SEQ, tmp_path / "cache")
    assert 2 < shards.vocab_size <= 300
    for split, text in corpus.texts.items():
        assert shards.tokens(split).max() < shards.vocab_size
        said = shards.vocabulary.decode(shards.tokens(split)).split()
        assert len(said) == len(text.split())
        pairs = zip(said, text.split(), strict=True)
        assert all(new in (old, b"<unk>") for new, old in pairs)
        assert said.count(b"<unk>") < len(said)
