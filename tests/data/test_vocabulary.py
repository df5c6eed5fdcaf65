"""Vocabularies: there and back, sizes, and fingerprints that follow the meaning of the tokens."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bkray.data.vocabulary import ByteVocabulary, WordVocabulary, most_frequent_words

_ROOT = Path(__file__).resolve().parents[2]
REAL_TEXT = _ROOT / os.environ.get("BKRAY_TEST_DATA", "../shared/data")


def test_bytes_decode_to_what_was_encoded() -> None:
    text = bytes(range(256)) + "€".encode()
    tokens = ByteVocabulary().encode(text)
    assert tokens.dtype == np.uint8
    assert tokens.tolist() == list(text)
    assert ByteVocabulary().decode(tokens.astype(np.int64)) == text


def test_words_are_ranked_by_frequency_then_alphabet_behind_unk() -> None:
    vocabulary = most_frequent_words(b"b a b c a b\n", 5)
    assert vocabulary.words == ("<unk>", "b", "a", "<eos>", "c")
    assert most_frequent_words(b"b a b c a b\n", 3).words == ("<unk>", "b", "a")


def test_words_come_back_line_by_line_and_rare_ones_as_unk() -> None:
    vocabulary = WordVocabulary(["<eos>", "to", "be"])
    tokens = vocabulary.encode(b"to be\n\n  or not  to be")
    assert tokens.tolist() == [2, 3, 1, 1, 0, 0, 2, 3]
    assert vocabulary.decode(tokens) == b"to be\n\n<unk> <unk> to be"


def test_an_unk_in_the_text_is_the_unknown_word() -> None:
    vocabulary = most_frequent_words(b"<unk> <unk> <unk> a\n", 10)
    assert vocabulary.words.count("<unk>") == 1
    assert vocabulary.encode(b"<unk> a b\n").tolist() == [0, 2, 0, 1]


@pytest.mark.parametrize(
    ("n_words", "dtype"),
    [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.int32)],
)
def test_tokens_take_the_smallest_type_that_holds_them(n_words: int, dtype: type) -> None:
    vocabulary = WordVocabulary(f"w{i}" for i in range(n_words))
    tokens = vocabulary.encode(f"w{n_words - 1}".encode())
    assert tokens.dtype == dtype
    assert tokens.tolist() == [n_words]


def test_wikitext_2_has_as_many_words_as_the_literature_says() -> None:
    """Merity et al. 2016, table 1: 217,646 to validate, 245,569 to test, line ends counted."""
    folder = REAL_TEXT / "wikitext-2"
    if not folder.exists():
        pytest.skip(f"no real text at {folder}: set BKRAY_TEST_DATA")
    vocabulary = WordVocabulary(["<eos>"])
    assert len(vocabulary.encode((folder / "valid.txt").read_bytes())) == 217_646
    assert len(vocabulary.encode((folder / "test.txt").read_bytes())) == 245_569


def test_fingerprint_is_equal_for_equal_words_in_equal_order_alone() -> None:
    one = WordVocabulary(["a", "b"]).fingerprint
    assert one == WordVocabulary(["a", "b"]).fingerprint
    others = (WordVocabulary(["b", "a"]), WordVocabulary(["ab"]), ByteVocabulary())
    assert one not in [other.fingerprint for other in others]


def test_fingerprint_does_not_change_with_the_process() -> None:
    """Python salts the hash of text per process; ours must not depend on it."""
    program = (
        "from bkray.data.vocabulary import most_frequent_words as words;"
        "print(words(b'to be or not to be that is the question', 9).fingerprint)"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(prints) == 1
