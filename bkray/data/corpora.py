"""Corpora: real text from Python's own library, a file, a folder or WikiText, split in three.

A split is UTF-8 bytes, but for the mixture, which is no text. Each document of a corpus of several
ends with ``SEPARATOR``; a NUL is no text, so the separator cannot be mistaken for content.
"""

import codecs
import hashlib
import platform
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bkray.data.corpus import Corpus as Corpus
from bkray.data.mixture import mixture
from bkray.errors import DataError

SPLITS = ("train", "valid", "test")
SEPARATOR = b"\x00\n"
TEXT_SUFFIXES = (".txt", ".text", ".tokens", ".md", ".rst", ".py")

_TRAIN_SHARE, _VALID_SHARE = 0.90, 0.05
_LEAST_SHARE = 0.02  # of all bytes; a split by file with less in it says little
_LAYOUT = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
_ADVICE = "give stdlib, mixture, a text file, a folder of text files or a WikiText folder"

# Left out of the standard library: what is no library text, what distributions ship apart or not
# at all, and what the build of one machine or its administrator wrote.
_NO_LIBRARY = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}
_SHIPPED_APART = {"idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip"}
_OF_ONE_MACHINE = ("_sysconfigdata", "_distutils_system_mod", "sitecustomize", "usercustomize")


def read(name_or_path: str | Path, *, max_bytes: int | None = None) -> Corpus:
    """Return the corpus of that name or place, about 90% train, 5% valid, 5% test.

    ``stdlib`` is the text of the running Python's library, ``mixture`` a third of it beside
    patterns and noise; any other word is a path. A file is cut into three; a folder is split by
    the hash of each file's name, or cut into three where that leaves a split (nearly) empty; a
    WikiText folder keeps its own splits.

    Args:
        max_bytes: most bytes of training text, cut at a character or a segment. Documents come in
            the order of their hash, so a cut takes a spread of them, but the beginning of a single
            file.

    Raises:
        DataError: nothing there, no text in it, bytes that are not UTF-8 text, or a cut that
            leaves no segment.
    """
    match str(name_or_path):
        case "stdlib":
            corpus = _stdlib()
        case "mixture":
            corpus = mixture(_stdlib())
        case _:
            corpus = _from_path(Path(name_or_path))
    if max_bytes is None or len(corpus.text("train")) <= max_bytes:
        return corpus
    train = corpus.text("train")
    if corpus.segment is None:
        end = _character_start(train, max_bytes)
    elif max_bytes >= corpus.segment:
        end = max_bytes // corpus.segment * corpus.segment
    else:
        raise DataError(
            f"data.max_bytes={max_bytes} leaves no segment of data.corpus={corpus.name}: "
            f"use at least {corpus.segment}"
        )
    texts = {**corpus.texts, "train": train[:end]}
    return replace(
        corpus, texts=texts, source=f"{corpus.source}; first {max_bytes} bytes of train"
    )


def _from_path(path: Path) -> Corpus:
    try:
        path = path.expanduser()
        found = path.exists()
    except (OSError, RuntimeError) as error:  # a path too long, a user who is not there
        raise DataError(f"there is no corpus {str(path)[:80]!r} ({error}): {_ADVICE}") from None
    if not found:
        raise DataError(f"there is no corpus {str(path)!r}: {_ADVICE}")
    if path.is_file():
        texts = _cut_in_three(_read_text(path))
        return Corpus(name=path.name, source=f"text file {path}, cut into three", texts=texts)
    layout = {split: _layout_files(path, names) for split, names in _LAYOUT.items()}
    if layout["valid"] and (layout["train"] or layout["test"]):
        return _from_layout(path, layout)
    return _from_folder(path)


def _stdlib() -> Corpus:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        file
        for file in root.rglob("*.py")
        if (_NO_LIBRARY | _SHIPPED_APART).isdisjoint(file.relative_to(root).parts)
        and not file.name.startswith(_OF_ONE_MACHINE)
    ]
    documents = _documents(root, files)
    if not documents:
        raise DataError(f"this Python has no source files in {root}: {_ADVICE}")
    return Corpus(
        name="stdlib",
        source=f"{len(documents)} files of the library of Python {platform.python_version()}, "
        "without tests, split by hash of file name",
        texts=_split_by_hash(documents),
    )


def _from_folder(folder: Path) -> Corpus:
    files = [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in TEXT_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    documents = _documents(folder, files)
    if not documents:
        raise DataError(
            f"folder {folder} holds no text: no file with text in it ends in "
            f"{' '.join(TEXT_SUFFIXES)}; {_ADVICE}"
        )
    source = f"{len(documents)} text files of {folder}"
    texts = _split_by_hash(documents)
    least = _LEAST_SHARE * sum(map(len, texts.values()))
    if min(map(len, texts.values())) >= least:
        return Corpus(name=folder.name, source=f"{source}, split by hash of name", texts=texts)
    texts = _cut_in_three(b"".join(documents.values()))
    return Corpus(name=folder.name, source=f"{source}, joined and cut into three", texts=texts)


def _from_layout(folder: Path, layout: Mapping[str, Sequence[Path]]) -> Corpus:
    """Return the corpus of a folder with files per split; without train, test is trained on."""
    if layout["train"]:
        texts = {split: _joined(files) for split, files in layout.items() if files}
        return Corpus(name=folder.name, source=f"splits of {folder} as they are", texts=texts)
    return Corpus(
        name=folder.name.lower().replace("wikitext-", "wikitext") + "-small",
        source=f"{folder} without its training split: trained on test, validated on valid",
        texts={"train": _joined(layout["test"]), "valid": _joined(layout["valid"])},
    )


def _layout_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the file or files of one split; Parquet may come in several parts."""
    for name in names:
        for plain in (f"{name}.txt", f"wiki.{name}.tokens", f"wiki.{name}.raw"):
            if (folder / plain).is_file():
                return [folder / plain]
    return sorted({part for name in names for part in folder.glob(f"*{name}*.parquet")})


def _joined(files: Iterable[Path]) -> bytes:
    return b"".join(
        _read_parquet(file) if file.suffix == ".parquet" else _read_text(file) for file in files
    )


def _documents(root: Path, files: Iterable[Path]) -> dict[str, bytes]:
    """Return the text of each file that has any, in the order of the hash of its relative name."""
    by_name = {file.relative_to(root).as_posix(): file for file in files}
    return {
        name: _ended(_read_text(by_name[name]))
        for name in sorted(by_name, key=_place)
        if by_name[name].stat().st_size
    }


def _ended(document: bytes) -> bytes:
    return document + (b"" if document.endswith(b"\n") else b"\n") + SEPARATOR


def _split_by_hash(documents: Mapping[str, bytes]) -> dict[str, bytes]:
    texts: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for name, document in documents.items():
        place = _place(name)
        below = (place >= _TRAIN_SHARE) + (place >= _TRAIN_SHARE + _VALID_SHARE)
        texts[SPLITS[below]].append(document)
    return {split: b"".join(parts) for split, parts in texts.items()}


def _place(name: str) -> float:
    """Return a number in [0, 1] that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def _cut_in_three(text: bytes) -> dict[str, bytes]:
    first = _character_start(text, int(len(text) * _TRAIN_SHARE))
    second = _character_start(text, int(len(text) * (_TRAIN_SHARE + _VALID_SHARE)))
    return {"train": text[:first], "valid": text[first:second], "test": text[second:]}


def _character_start(text: bytes, at: int) -> int:
    """Return the last index up to ``at`` where a character of the UTF-8 text starts."""
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _read_text(path: Path) -> bytes:
    """Return the UTF-8 bytes of a file without byte order mark, checked to be text."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return _checked(text, path).removeprefix(codecs.BOM_UTF8)


def _read_parquet(path: Path) -> bytes:
    """Return the rows of column ``text`` as lines: the hub's WikiText has one line a row."""
    try:
        file = pq.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise DataError(
                f"{path} has no column text, only {', '.join(file.schema_arrow.names)}"
            )
        column = file.read(columns=["text"]).column("text").cast(pa.large_binary())
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file with a column of text: {error}") from error
    if column.null_count:
        raise DataError(f"{path} has {column.null_count} rows without text")
    rows: list[bytes] = column.to_pylist()
    return _checked(b"".join(r if r.endswith(b"\n") else r + b"\n" for r in rows), path)


def _checked(text: bytes, path: Path) -> bytes:
    if not text:
        raise DataError(f"{path} is empty: {_ADVICE}")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte 0x{text[error.start]:02x} at offset {error.start} "
            f"({error.reason}); convert it to UTF-8 first"
        ) from error
    if (offset := text.find(b"\x00")) >= 0:
        raise DataError(
            f"{path} is not text: NUL byte at offset {offset}; "
            "a binary file, or another encoding than UTF-8"
        )
    return text
