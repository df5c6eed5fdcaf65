"""The recall task: answers at their distance, what a reader can know, the same bytes always."""

import hashlib
import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bkray.config import DataConfig
from bkray.data.corpora import read
from bkray.data.corpus import Corpus
from bkray.data.recall import (
    ANSWER_NATS,
    KEYS,
    NOISE,
    SEED,
    VALUES,
    answer_nats,
    answers,
    distances_to,
    recall,
)
from bkray.data.shards import prepare
from bkray.errors import ConfigError, DataError
from bkray.overrides import build, flatten

LONGEST = 64
DISTANCES = [4, 8, 16, 32, 64]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return recall(LONGEST)


def segments(corpus: Corpus, split: str, distance: int) -> list[bytes]:
    assert corpus.segment is not None
    text, n_kinds = corpus.text(split), len(corpus.kinds)
    first = corpus.kinds.index(f"distance_{distance}") * corpus.segment
    starts = range(first, len(text), n_kinds * corpus.segment)
    return [text[start : start + corpus.segment] for start in starts]


def places(segment: bytes) -> list[int]:
    found: list[int] = answers(np.frombuffer(segment, dtype=np.uint8)).tolist()
    return found


def test_it_is_segments_of_one_distance_each(corpus: Corpus) -> None:
    assert distances_to(LONGEST) == DISTANCES
    assert corpus.kinds == tuple(f"distance_{n}" for n in DISTANCES)
    assert corpus.segment == 129
    for split, n_bytes in (("train", 2**22), ("valid", 2**19), ("test", 2**19)):
        assert n_bytes - 5 * 129 < len(corpus.text(split)) <= n_bytes


@pytest.mark.parametrize("distance", DISTANCES)
def test_an_answer_is_the_value_of_its_key_and_was_said_just_so_far_before(
    corpus: Corpus, distance: int
) -> None:
    n_answers = 0
    for segment in segments(corpus, "valid", distance):
        for place in places(segment):
            said = place - distance
            assert segment[place - 2 : place - 1] == b"?"
            assert segment[said - 2 : said - 1] == b"="
            assert segment[place - 1 : place + 1] == segment[said - 1 : said + 1]
            key = segment[place - 1 : place]
            assert b"=" + key not in segment[said:place], "nothing newer was said of the key"
            assert b"?" + key not in segment[said : place - 2], "and it was not asked for before"
            n_answers += 1
    assert n_answers > 100


def test_without_its_first_mention_an_answer_is_uniform_and_independent_of_the_rest(
    corpus: Corpus,
) -> None:
    pairs: list[tuple[int, int, int]] = []
    for distance in DISTANCES:
        for segment in segments(corpus, "train", distance):
            asked = places(segment)
            for before, place in itertools.pairwise(asked):
                pairs.append((segment[place], segment[place - 1], segment[before]))
    for position in (0, 1, 2):
        counts = Counter(pair[position] for pair in pairs)
        expected = len(pairs) / 16
        chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
        assert len(counts) == 16 and chi_square < 45, "15 degrees of freedom"
    for other in (1, 2):
        table = Counter((pair[0], pair[other]) for pair in pairs)
        expected = len(pairs) / 256
        chi_square = sum((count - expected) ** 2 / expected for count in table.values())
        assert chi_square < 350, "about 255 degrees of freedom"


def test_the_entropy_of_an_answer_is_that_of_a_reader_who_counts(corpus: Corpus) -> None:
    """The reader copies from ``distance`` behind where it can see that far, else guesses."""
    assert pytest.approx(math.log(16)) == ANSWER_NATS
    for distance, context in itertools.product(DISTANCES, (1, 7, 8, 31, 32, 64, 4096)):
        loss = n_answers = 0.0
        for segment in segments(corpus, "test", distance)[:50]:
            for place in places(segment):
                sees = segment[max(0, place - context) : place]
                guesses = sees[-distance:][:1] if len(sees) >= distance else VALUES
                assert segment[place] in guesses
                loss, n_answers = loss + math.log(len(guesses)), n_answers + 1
        assert loss / n_answers == pytest.approx(answer_nats(distance, context))


def test_noise_and_words_of_the_task_cannot_be_mistaken(corpus: Corpus) -> None:
    alphabets = [KEYS, VALUES, NOISE, b"=", b"?"]
    together = b"".join(alphabets)
    assert len(set(together)) == len(together)
    assert set(corpus.text("train")) == set(together)


def test_it_is_the_same_on_every_machine_and_another_for_another_distance() -> None:
    assert SEED == 20261121
    digest = hashlib.sha256(b"".join(recall(LONGEST).texts.values())).hexdigest()
    assert digest == ("c597e53b8935cf0bd96be100c2c2c02e2ab18183469dc6c683a10bd459d00477")
    assert recall(32).text("valid")[:64] != recall(LONGEST).text("valid")[:64]


def test_the_longest_distance_has_room_in_the_longest_context(tmp_path: Path) -> None:
    corpus = recall(65_536)
    assert corpus.segment == 131_073
    for split in corpus.texts:
        asked = [place for part in segments(corpus, split, 65_536) for place in places(part)]
        assert len(asked) >= 8 and min(asked) >= 65_536
    shards = prepare(DataConfig(corpus="recall", recall_distance=65_536), 131_072, tmp_path)
    assert shards.kinds == corpus.kinds and len(shards.kinds) == 15


def test_the_knob_acts_on_this_corpus_alone() -> None:
    assert build({"data.corpus": "recall"}).data.recall_distance == 1024
    assert "data.recall_distance" not in flatten(build({}))
    with pytest.raises(ConfigError, match=r"does nothing with data\.corpus=stdlib: set data"):
        build({"data.recall_distance": 64})
    with pytest.raises(ConfigError, match="must be a power of two from 8 to 1048576, got 24"):
        build({"data.corpus": "recall", "data.recall_distance": 24})
    with pytest.raises(ConfigError, match="8 <= recall_distance <= 1048576"):
        build({"data.corpus": "recall", "data.recall_distance": 4})


def test_words_and_a_window_longer_than_a_segment_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer=words does not apply to data\.corpus=recall"):
        prepare(DataConfig(corpus="recall", tokenizer="words"), 64, tmp_path)
    with pytest.raises(DataError, match=r"n_seq=2049 does not fit .* use at most 2048"):
        prepare(DataConfig(corpus="recall"), 2049, tmp_path)
    assert read("recall").segment == 2049
