"""Token shards: a corpus as token numbers in Arrow files, kept in a cache and memory-mapped.

A cache folder holds one prepared corpus: ``manifest.json``, ``words.json`` where the vocabulary is
one of words, and ``<split>-<part>.arrow``. Its name is a hash of all that goes in, text included.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from bkray import atomic
from bkray.config import DataConfig
from bkray.data.corpora import read
from bkray.data.corpus import Corpus, check_length
from bkray.data.vocabulary import (
    ByteVocabulary,
    Tokens,
    Vocabulary,
    WordVocabulary,
    most_frequent_words,
)
from bkray.errors import DataError

SHARD_TOKENS = 64 * 2**20

_FORMAT = 2  # of the cache; counts up when its files change, so old ones are not read
_MANIFEST, _WORDS = "manifest.json", "words.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """A prepared corpus. ``fingerprint`` is SHA-256 over tokens and vocabulary, in hex.

    ``unigram_entropy_nats`` is the training loss of the best guess that ignores the context: a
    model that stays there has learnt frequencies only. ``segment`` is in tokens; it and ``kinds``
    are those of the corpus.
    """

    corpus: str
    source: str
    fingerprint: str
    vocabulary: Vocabulary
    unigram_entropy_nats: float
    n_tokens: Mapping[str, int]
    segment: int | None
    kinds: tuple[str, ...]
    _tokens: Mapping[str, Tokens]

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    def tokens(self, split: str) -> Tokens:
        """Return the tokens of ``train``, ``valid`` or ``test``, read-only.

        A view of the mapped file; a split of several files is joined in memory.

        Raises:
            DataError: the corpus has no such split.
        """
        if split not in self._tokens:
            raise DataError(
                f"corpus {self.corpus} has no {split} split ({self.source}): "
                f"use one of {', '.join(self._tokens)}"
            )
        return self._tokens[split]


def prepare(
    config: DataConfig,
    n_seq: int,
    cache: Path | None = None,
    *,
    shard_tokens: int = SHARD_TOKENS,
) -> Shards:
    """Return the tokens of the configured corpus, from the cache where they are there and whole.

    Processes that prepare the same corpus at once wait for one another; a damaged cache is built
    again. The source is read every time, so a change in it is never missed.

    Args:
        cache: folder of all prepared corpora; by default ``BKRAY_CACHE``, else ``~/.cache/bkray``.
        shard_tokens: most tokens in one file.

    Raises:
        DataError: no such corpus, not text, too little of it, words asked of what has none, or a
            cache that cannot be written.
    """
    corpus = read(
        config.corpus,
        max_bytes=config.max_bytes,
        recall_distance=config.recall_distance,
    )
    if corpus.segment is not None and config.tokenizer == "words":
        raise DataError(
            f"data.tokenizer=words does not apply to data.corpus={config.corpus}, which is "
            "segments of bytes: use data.tokenizer=bytes"
        )
    cache = cache or Path(os.environ.get("BKRAY_CACHE") or Path.home() / ".cache" / "bkray")
    folder = cache / _key(corpus, config)
    shards = _open(folder)
    if shards is None:
        try:
            shards = _build(folder, corpus, config, shard_tokens)
        except OSError as error:
            raise DataError(
                f"the token cache {cache} cannot be written ({error.strerror or error}): "
                "set BKRAY_CACHE to a folder that can"
            ) from error
    for split in ("train", "valid"):
        check_length(shards.tokens(split), n_seq, split, shards.segment)
    return shards


def _key(corpus: Corpus, config: DataConfig) -> str:
    what = [_FORMAT, corpus.name, corpus.source, corpus.fingerprint]
    words = json.dumps([*what, config.tokenizer, config.vocab_size])
    return hashlib.sha256(words.encode()).hexdigest()[:24]


def _build(folder: Path, corpus: Corpus, config: DataConfig, shard_tokens: int) -> Shards:
    """Write the shards into ``folder``, whole or not at all, unless another process just did."""
    with _locked(folder):
        if (shards := _open(folder)) is not None:
            return shards
        new = folder.with_suffix(".new")
        for left in (new, folder):  # by a killed process, and damaged
            if left.exists():
                shutil.rmtree(left)
        new.mkdir()
        _write(new, corpus, config, shard_tokens)
        new.rename(folder)
        shards = _open(folder)
    assert shards is not None, "what was just written can be read"
    return shards


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of one cache folder; the system frees it when the process dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(folder: Path, corpus: Corpus, config: DataConfig, shard_tokens: int) -> None:
    vocabulary: Vocabulary = ByteVocabulary()
    if config.tokenizer == "words":
        assert config.vocab_size is not None, "DataConfig gives words a size"
        vocabulary = most_frequent_words(corpus.text("train"), config.vocab_size)
    tokens = {split: vocabulary.encode(text) for split, text in corpus.texts.items()}
    manifest = {
        "corpus": corpus.name,
        "source": corpus.source,
        "tokenizer": config.tokenizer,
        "vocab_size": vocabulary.size,
        "unigram_entropy_nats": _entropy_nats(tokens["train"]),
        "n_tokens": {split: len(numbers) for split, numbers in tokens.items()},
        "segment": corpus.segment,
        "kinds": corpus.kinds,
        "fingerprint": _fingerprint(vocabulary, tokens),
        "files": {
            split: _write_parts(folder, split, numbers, shard_tokens)
            for split, numbers in tokens.items()
        },
    }
    if isinstance(vocabulary, WordVocabulary):
        atomic.write_json(folder / _WORDS, vocabulary.words)
    atomic.write_json(folder / _MANIFEST, manifest)


def _write_parts(folder: Path, split: str, tokens: Tokens, shard_tokens: int) -> list[str]:
    names: list[str] = []
    for start in range(0, max(len(tokens), 1), shard_tokens):
        names.append(f"{split}-{len(names):05d}.arrow")
        batch = pa.record_batch({"tokens": tokens[start : start + shard_tokens]})
        with (
            atomic.replace(folder / names[-1]) as path,
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, batch.schema) as writer,
        ):
            writer.write_batch(batch)
    return names


def _open(folder: Path) -> Shards | None:
    """Return the shards in ``folder``, or ``None`` where they are missing or damaged."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        vocabulary: Vocabulary = ByteVocabulary()
        if manifest["tokenizer"] == "words":
            vocabulary = WordVocabulary(json.loads((folder / _WORDS).read_text("utf-8"))[1:])
        tokens = {
            split: _joined([_map(folder / name) for name in names])
            for split, names in manifest["files"].items()
        }
        if _fingerprint(vocabulary, tokens) != manifest["fingerprint"]:
            return None
        return Shards(
            corpus=manifest["corpus"],
            source=manifest["source"],
            fingerprint=manifest["fingerprint"],
            vocabulary=vocabulary,
            unigram_entropy_nats=manifest["unigram_entropy_nats"],
            n_tokens=manifest["n_tokens"],
            segment=manifest["segment"],
            kinds=tuple(manifest["kinds"]),
            _tokens=tokens,
        )
    except (OSError, ValueError, LookupError, pa.ArrowException):
        return None


def _map(path: Path) -> Tokens:
    with pa.memory_map(str(path)) as file:
        column = pa.ipc.open_file(file).get_batch(0).column("tokens")
        tokens: Tokens = column.to_numpy(zero_copy_only=True)
    return tokens


def _joined(parts: list[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    tokens = np.concatenate(parts)
    tokens.flags.writeable = False
    return tokens


def _fingerprint(vocabulary: Vocabulary, tokens: Mapping[str, Tokens]) -> str:
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    for split, numbers in tokens.items():
        digest.update(f"\n{split} {len(numbers)} {numbers.dtype.str}\n".encode())
        digest.update(numbers.data)
    return digest.hexdigest()


def _entropy_nats(tokens: Tokens) -> float:
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / len(tokens)
    return float(-(shares * np.log(shares)).sum())
