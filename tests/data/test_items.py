"""The texts of a file, whatever it is: nested lists, several fields, in parts, bad lines."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.data import items
from bkray.data.items import texts
from bkray.errors import DataError

RECORDS: list[dict[str, Any]] = [
    {"id": 1, "theorems": [{"text": "a b", "proof": ["p", "q"]}, {"text": "c"}]},
    {"id": 2, "theorems": []},
    {"id": 3, "title": "t", "theorems": [{"text": "d\ne"}, {"text": None}]},
]
FOUND = ["a b", "c", "d\ne"]


def written(folder: Path, kind: str, records: Any = RECORDS) -> Path:
    path = folder / f"items.{kind}"
    match kind:
        case "json":
            path.write_text(json.dumps(records, indent=1))
        case "jsonl":
            path.write_text("".join(json.dumps(one) + "\n\n" for one in records))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_a_field_is_found_through_lists(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    assert list(texts(path, ["theorems.text"])) == FOUND
    assert sorted(texts(path, ["theorems.text", "theorems.proof"])) == sorted([*FOUND, "p", "q"])


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_an_array_of_any_size_is_read_in_parts(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "_CHARACTERS", size)
    records = [{"text": f"item {i}", "n": 10**i} for i in range(20)]
    assert list(texts(written(tmp_path, "json", records))) == [r["text"] for r in records]
    one = written(tmp_path, "json", {"docs": records})
    assert list(texts(one, ["docs.text"])) == [r["text"] for r in records]
    assert list(texts(written(tmp_path, "json", ["x", "y z"]))) == ["x", "y z"]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_texts_alone_need_no_field(tmp_path: Path, kind: str) -> None:
    assert list(texts(written(tmp_path, kind, ["x", "y z"]))) == ["x", "y z"]


def test_the_field_of_records_is_text_unless_told(tmp_path: Path) -> None:
    for kind in ("json", "jsonl", "parquet"):
        assert list(texts(written(tmp_path, kind, [{"text": "x"}]))) == ["x"]


def test_lines_of_a_text_are_items(tmp_path: Path) -> None:
    path = tmp_path / "plain.txt"
    path.write_bytes("\ufeffone two\r\n\n  \nthree".encode())
    assert list(texts(path)) == ["one two", "three"]


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_a_missing_field_names_those_there_are(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    with pytest.raises(DataError) as told:
        list(texts(path, ["theorem.text"]))
    assert "theorem" in str(told.value) and "theorems" in str(told.value)
    if kind != "parquet":
        assert "id, theorems.text, theorems.proof" in str(told.value)
    with pytest.raises(DataError, match="name one by --field"):
        list(texts(path))


def test_a_bad_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": }\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 3 is no JSON: Expecting value"):
        list(texts(path))
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        list(texts(path))
    array = tmp_path / "bad.json"
    array.write_text('[\n {"text": "a"},\n {"text": oops}\n]')
    with pytest.raises(DataError, match=r"bad\.json, line 3 is no JSON"):
        list(texts(array))
    array.write_text('[\n {"text": "a"}')
    with pytest.raises(DataError, match="is no JSON"):
        list(texts(array))


@pytest.mark.parametrize(("kind", "place"), [("json", "line 5"), ("jsonl", "line 3")])
def test_what_is_no_text_is_named_by_its_place(tmp_path: Path, kind: str, place: str) -> None:
    path = written(tmp_path, kind, [{"text": "a"}, {"text": 7}])
    with pytest.raises(DataError, match=f"{place}: text is no text but a int"):
        list(texts(path))


def test_what_is_no_file_or_has_no_fields_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        list(texts(tmp_path / "none.txt"))
    plain = tmp_path / "plain.txt"
    plain.write_text("a\n")
    with pytest.raises(DataError, match="leave --field out"):
        list(texts(plain, ["text"]))
    (tmp_path / "no.parquet").write_text("a")
    with pytest.raises(DataError, match="is no Parquet file"):
        list(texts(tmp_path / "no.parquet"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="it has no records"):
        list(texts(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        *('["a"]garbage', '["a"]["b"]', '["a" "b"]', '["a",, "b"]', '["a",]', '[,"a"]', '["a"'),
        *('{"text": "a"}{"text": "b"}', ',"a"', '["a"],'),
    ],
)
def test_one_array_with_one_comma_between_is_all(
    tmp_path: Path, text: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "_CHARACTERS", size)
    path = tmp_path / "bad.json"
    path.write_text(f" \n{text}\n")
    with pytest.raises(DataError, match=r"line [23] is no JSON"):
        list(texts(path))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_numbers_cut_in_parts_are_whole(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "_CHARACTERS", size)
    path = tmp_path / "cut.json"
    path.write_text('[{"text": "a"}, [12345, -1.5e+10, 0.25], 12, 1e+5, -1.5E-7 ,2.5]\n ')
    assert [one.value for one in items._json(path)][1:] == [
        *([12345, -1.5e10, 0.25], 12, 1e5, -1.5e-7, 2.5),
    ]


@pytest.mark.parametrize("bad", ["[" * 9999 + "]" * 9999, "1" * 5000])
@pytest.mark.parametrize(("kind", "line"), [("json", 1), ("jsonl", 2)])
def test_what_the_decoder_cannot_take_is_named_by_its_place(
    tmp_path: Path, kind: str, line: int, bad: str
) -> None:
    path = tmp_path / f"bad.{kind}"
    path.write_text(f'["a", {bad}]' if kind == "json" else f'"a"\n{bad}\n')
    with pytest.raises(DataError, match=f"line {line} is no JSON: "):
        list(texts(path))


def test_what_only_just_decodes_is_too_deep_as_well(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    for depth in range(100, 1000, 50):
        path.write_text(f'"a"\n{"[" * depth}{"]" * depth}\n')
        try:
            assert list(texts(path)) == ["a"]
        except DataError as error:
            assert "line 2" in str(error) and "too deeply" in str(error)
