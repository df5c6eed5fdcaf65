"""Long documents: packages in path order, no window across two, none in two splits."""

from pathlib import Path

import pytest

from bkray.config import DataConfig
from bkray.data.batches import Batches, validation_windows
from bkray.data.corpora import read
from bkray.data.corpus import Corpus
from bkray.data.documents import SEGMENT, whole_documents
from bkray.data.shards import prepare
from bkray.errors import DataError

N_MADE = 7


def made(n_documents: int = N_MADE) -> dict[str, bytes]:
    """Return packages of two modules each: package ``p<i>`` is of the letter ``A + i`` alone, and
    ``n_documents + 1 - i`` half segments long in each module."""
    modules = {}
    for i in range(n_documents):
        half = (n_documents + 1 - i) * SEGMENT // 2 + 1
        for name in ("zeta", "alpha"):
            head = f"{name} of {i}\n".encode()
            modules[f"p{i}/{name}.py"] = head + bytes([65 + i]) * (half - len(head))
    return modules


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return whole_documents(made())


def pieces(corpus: Corpus, split: str) -> list[bytes]:
    text = corpus.text(split)
    return [text[start : start + SEGMENT] for start in range(0, len(text), SEGMENT)]


def test_the_longest_come_first_and_every_sixth_is_held_out(corpus: Corpus) -> None:
    letters = {
        split: [chr(piece[-1]) for piece in pieces(corpus, split)] for split in corpus.texts
    }
    expected = {"train": "A" * 8 + "B" * 7 + "C" * 6 + "D" * 5 + "G" * 2, "valid": "E" * 4}
    assert {split: "".join(said) for split, said in letters.items()} == {
        **expected,
        "test": "F" * 3,
    }


def test_a_document_is_its_modules_in_path_order_whatever_order_they_come_in() -> None:
    modules = made()
    backwards = dict(reversed(modules.items()))
    corpus = whole_documents(modules)
    assert whole_documents(backwards) == corpus
    assert corpus.text("train").startswith(b"alpha of 0\nAAA")
    whole = modules["p0/alpha.py"] + modules["p0/zeta.py"]
    assert corpus.text("train")[: 8 * SEGMENT] == whole[: 8 * SEGMENT]


def test_what_is_shorter_than_a_segment_is_left_out(corpus: Corpus) -> None:
    shorter = {**made(), "small.py": b"s" * (SEGMENT - 1), "small/part.py": b"t" * 99}
    assert whole_documents(shorter) == corpus
    assert f"{N_MADE} packages" in corpus.source


def test_a_window_of_any_context_lies_in_one_document(corpus: Corpus, tmp_path: Path) -> None:
    tokens = prepare(DataConfig(corpus="documents"), 64, tmp_path).vocabulary.encode
    train = tokens(corpus.text("train"))
    for n_seq in (100_000, SEGMENT - 1):
        batches = Batches(train, n_seq, 8, 0, segment=corpus.segment)
        fixed, _ = validation_windows(train, n_seq, 8, segment=corpus.segment)
        for windows in (*(next(batches)[0] for _ in range(4)), fixed):
            for window in windows:
                assert sum((window == 65 + i).any().item() for i in range(N_MADE)) == 1


def test_too_few_long_documents_are_an_error() -> None:
    with pytest.raises(DataError, match=r"needs 6 documents of 131073 bytes, .* library has 5"):
        whole_documents(made(5))


def test_the_librarys_longest_packages_are_there_with_the_longest_context(tmp_path: Path) -> None:
    corpus = read("documents")
    assert corpus.segment == 131_073 and corpus.kinds == ()
    assert len(corpus.text("train")) >= 10 * SEGMENT
    shards = prepare(DataConfig(corpus="documents"), 131_072, tmp_path)
    assert shards.tokens("train").tobytes() == corpus.text("train")
    asyncio = b"".join(
        part for part in pieces(corpus, "train") if b"asyncio" in part and b"event loop" in part
    )
    assert len(asyncio) >= 2 * SEGMENT, "one document in several segments"


def test_a_longer_context_and_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"n_seq=131073 does not fit .* use at most 131072"):
        prepare(DataConfig(corpus="documents"), 131_073, tmp_path)
    words = DataConfig(corpus="documents", tokenizer="words")
    with pytest.raises(DataError, match=r"tokenizer=words does not apply to .*documents"):
        prepare(words, 64, tmp_path)
    with pytest.raises(DataError, match=r"leaves no segment .* at least 131073"):
        read("documents", max_bytes=131_072)
