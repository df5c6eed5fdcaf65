"""The texts of a file one by one: lines, or fields of JSON, JSON lines and Parquet; streamed."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from bkray.errors import DataError

DEFAULT_FIELD = "text"
"""Field of records, unless told otherwise."""

_CHARACTERS = 1 << 20
"""Of a JSON file that are read at a time."""
_NAMED = 30
"""Fields that an error names."""
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER_TAIL = 2
"""Characters behind a number, at the end of a part, that may belong to it: ``1`` of ``1e+5``."""


class Record(NamedTuple):
    """A value of the file, and where it stands: ``line 3``."""

    place: str
    value: Any


def texts(path: Path, fields: Sequence[str] = ()) -> Iterator[str]:
    """Yield the texts of a file, one item after another.

    A ``.json`` file holds one value or an array of them, ``.jsonl`` and ``.ndjson`` one a line,
    ``.parquet`` one a row; any other file is UTF-8 text, whose lines are the items, but for empty
    ones. Of a record each of ``fields`` is taken, ``theorems.text`` through all lists on the way;
    a list of texts is several items. Values that are missing or null are no items.

    Raises:
        DataError: no such file, a line that is no JSON or no UTF-8, a field that no record has
            (the fields there are are named), or one that is no text.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}: give text, JSON, JSONL or Parquet")
    try:
        match path.suffix.lower():
            case ".json":
                yield from _of_records(path, _json(path), fields)
            case ".jsonl" | ".ndjson":
                yield from _of_records(path, _json_lines(path), fields)
            case ".parquet":
                yield from _of_records(path, _parquet(path, fields), fields)
            case _ if fields:
                raise DataError(
                    f"{path} is text and has no field {fields[0]}: leave --field out, or name the "
                    "file .json, .jsonl or .parquet if it is that"
                )
            case _:
                yield from (record.value for record in _lines(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _of_records(path: Path, records: Iterable[Record], fields: Sequence[str]) -> Iterator[str]:
    wanted = {name: 0 for name in fields or (DEFAULT_FIELD,)}
    known: dict[str, None] = {}
    n_records = 0
    for record in records:
        n_records += 1
        if isinstance(record.value, str) and not fields:
            wanted[DEFAULT_FIELD] += 1
            yield record.value
            continue
        try:
            if len(known) < _NAMED:
                known.update(dict.fromkeys(_fields_of(record.value)))
            for name in wanted:
                for text in _values(record.value, name.split(".")):
                    if not isinstance(text, str):
                        kind = type(text).__name__
                        raise DataError(f"{path}, {record.place}: {name} is no text but a {kind}")
                    wanted[name] += 1
                    yield text
        except RecursionError:
            raise DataError(f"{path}, {record.place} is nested too deeply") from None
    for name, n_found in wanted.items():
        if not n_found:
            there = f"the fields there are: {', '.join(known)}" if known else "it has no records"
            advice = "" if fields else "; name one by --field"
            what = f"of its {n_records} records has text in" if n_records else "has"
            raise DataError(f"{path}: none {what} {name}; {there}{advice}")


def _values(value: Any, parts: Sequence[str]) -> Iterator[Any]:
    """Yield what a path leads to, through every list; nothing for null."""
    if isinstance(value, list):
        for one in value:
            yield from _values(one, parts)
    elif not parts:
        if value is not None:
            yield value
    elif isinstance(value, dict) and parts[0] in value:
        yield from _values(value[parts[0]], parts[1:])


def _fields_of(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from _fields_of(one, prefix)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, dict | list) and (deeper := list(_fields_of(inner, f"{name}."))):
                yield from (prefix + one for one in deeper)
            else:
                yield prefix + name


def _lines(path: Path) -> Iterator[Record]:
    """Yield the lines that are not empty, without their ends."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number} is not UTF-8: {error.reason}") from None
            if text.strip():
                yield Record(f"line {number}", text)


def _json_lines(path: Path) -> Iterator[Record]:
    for place, line in _lines(path):
        try:
            yield Record(place, json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, {place} is no JSON: {_why(error)}") from None


def _json(path: Path) -> Iterator[Record]:
    """Yield the elements of an array, no more of the file held than one of them takes, or the one
    value there is."""
    with path.open(encoding="utf-8-sig") as file:
        rest = _Rest(path, file)
        if rest.next() != "[":
            yield rest.value()
        else:
            rest.take()
            while rest.next() != "]":
                yield rest.value()
                if rest.next() not in (",", "]"):
                    raise rest.wrong("a comma or ] must stand behind an element")
                if rest.next() == ",":
                    rest.take()
                    if rest.next() == "]":
                        raise rest.wrong("a comma with no element behind it")
            rest.take()
        if rest.next():
            raise rest.wrong("more stands behind its end; name a file of a value a line .jsonl")


class _Rest:
    """What is left of a JSON file, read in parts."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._text, self._at, self._line = "", 0, 1

    def next(self) -> str:
        """Return the next character that is no white space, or ``""`` at the end."""
        while True:
            behind = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            self._go(behind)
            if behind < len(self._text):
                return self._text[behind]
            self._text, self._at = self._file.read(_CHARACTERS), 0
            if not self._text:
                return ""

    def take(self) -> None:
        self._at += 1

    def value(self) -> Record:
        """Return the value that begins here."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._at)
                if end + _NUMBER_TAIL < len(self._text) or not self._more():
                    break
            except json.JSONDecodeError as error:
                if not self._more():
                    self._go(min(error.pos, len(self._text)))
                    raise self.wrong(error.msg) from None
            except (ValueError, RecursionError) as error:
                raise self.wrong(_why(error)) from None
        record = Record(f"line {self._line}", value)
        self._go(end)
        return record

    def wrong(self, why: str) -> DataError:
        return DataError(f"{self._path}, line {self._line} is no JSON: {why}")

    def _more(self) -> bool:
        more = self._file.read(len(self._text) + _CHARACTERS)
        if more:
            self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)

    def _go(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to


def _why(error: Exception) -> str:
    """Return what the decoder says, without Python's own advice."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return str(error).partition(";")[0]


def _parquet(path: Path, fields: Sequence[str]) -> Iterator[Record]:
    """Yield the rows, with the columns that the fields are in."""
    try:
        file = pq.ParquetFile(path)
        there = file.schema_arrow.names
        columns = list(dict.fromkeys(one.split(".")[0] for one in fields or (DEFAULT_FIELD,)))
        if missing := [name for name in columns if name not in there]:
            advice = "" if fields else "; name one by --field"
            raise DataError(
                f"{path} has no column {missing[0]}; the columns there are: "
                f"{', '.join(there)}{advice}"
            )
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield Record(f"row {number}", row)
    except pa.ArrowException as error:
        raise DataError(f"{path} is no Parquet file: {error}") from error
