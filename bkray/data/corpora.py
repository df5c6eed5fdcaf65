"""Corpora: real text from Python's own library, a file, a folder or WikiText, and made ones.

A split is UTF-8 bytes, but for corpora of segments, which may be no text. Each document ends with
``SEPARATOR``; a NUL is no text, so the separator cannot be mistaken for content.
"""

import hashlib
import platform
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bkray.config import RECALL_DISTANCE
from bkray.data.corpus import Corpus as Corpus
from bkray.data.documents import whole_documents
from bkray.data.mixture import mixture
from bkray.data.reading import ADVICE, read_parquet, read_text
from bkray.data.recall import recall
from bkray.errors import DataError

SPLITS = ("train", "valid", "test")
SEPARATOR = b"\x00\n"
TEXT_SUFFIXES = (".txt", ".text", ".tokens", ".md", ".rst", ".py")

_TRAIN_SHARE, _VALID_SHARE = 0.90, 0.05
_LEAST_SHARE = 0.02  # of all bytes; a split by file with less in it says little
_LAYOUT = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}

# Left out of the standard library: what is no library text, what distributions ship apart or not
# at all, and what the build of one machine or its administrator wrote.
_NO_LIBRARY = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}
_SHIPPED_APART = {"idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip"}
_OF_ONE_MACHINE = ("_sysconfigdata", "_distutils_system_mod", "sitecustomize", "usercustomize")


def read(
    name_or_path: str | Path, *, max_bytes: int | None = None, recall_distance: int | None = None
) -> Corpus:
    """Return the corpus of that name or place, about 90% train, 5% valid, 5% test.

    ``stdlib`` is the text of the running Python's library, ``documents`` its longest packages,
    ``mixture`` a third of it beside patterns and noise, ``recall`` a made task; any other word is
    a path. A file is cut into three; a folder is split by the hash of each file's name, or cut
    into three where that leaves a split (nearly) empty; a WikiText folder keeps its own splits.

    Args:
        max_bytes: most bytes of training text, cut at a character or a segment. Documents come in
            the order of their hash, so a cut takes a spread of them, but the beginning of a single
            file.
        recall_distance: longest distance of ``recall``, a power of two.

    Raises:
        DataError: nothing there, no text in it, bytes that are not UTF-8 text, or a cut that
            leaves no segment.
    """
    match str(name_or_path):
        case "stdlib":
            corpus = _stdlib()
        case "mixture":
            corpus = mixture(_stdlib())
        case "documents":
            corpus = whole_documents(_library())
        case "recall":
            corpus = recall(recall_distance or RECALL_DISTANCE)
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
        raise DataError(f"there is no corpus {str(path)[:80]!r} ({error}): {ADVICE}") from None
    if not found:
        raise DataError(f"there is no corpus {str(path)!r}: {ADVICE}")
    if path.is_file():
        texts = _cut_in_three(read_text(path))
        return Corpus(name=path.name, source=f"text file {path}, cut into three", texts=texts)
    layout = {split: _layout_files(path, names) for split, names in _LAYOUT.items()}
    if layout["valid"] and (layout["train"] or layout["test"]):
        return _from_layout(path, layout)
    return _from_folder(path)


def _stdlib() -> Corpus:
    modules = _library()
    return Corpus(
        name="stdlib",
        source=f"{len(modules)} files of the library of Python {platform.python_version()}, "
        "without tests, split by hash of file name",
        texts=_split_by_hash(modules),
    )


def _library() -> dict[str, bytes]:
    """Return the modules of the running Python's library by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        file
        for file in root.rglob("*.py")
        if (_NO_LIBRARY | _SHIPPED_APART).isdisjoint(file.relative_to(root).parts)
        and not file.name.startswith(_OF_ONE_MACHINE)
    ]
    modules = _documents(root, files)
    if not modules:
        raise DataError(f"this Python has no source files in {root}: {ADVICE}")
    return modules


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
            f"{' '.join(TEXT_SUFFIXES)}; {ADVICE}"
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
        read_parquet(file) if file.suffix == ".parquet" else read_text(file) for file in files
    )


def _documents(root: Path, files: Iterable[Path]) -> dict[str, bytes]:
    """Return the text of each file that has any, in the order of the hash of its relative name."""
    by_name = {file.relative_to(root).as_posix(): file for file in files}
    return {
        name: _ended(read_text(by_name[name]))
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
