"""Files as UTF-8 bytes, checked to be text."""

import codecs
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bkray.errors import DataError

ADVICE = (
    "give stdlib, documents, mixture, recall, a text file, a folder of text files or a WikiText "
    "folder"
)


def read_text(path: Path) -> bytes:
    """Return the UTF-8 bytes of a file without byte order mark, checked to be text."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return _checked(text, path).removeprefix(codecs.BOM_UTF8)


def read_parquet(path: Path) -> bytes:
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
        raise DataError(f"{path} is empty: {ADVICE}")
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
