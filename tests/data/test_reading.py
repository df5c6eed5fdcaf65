"""Reading corpora: layouts, splits, and one clear error for each thing that is no text."""

import os
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.data.corpora import SEPARATOR, read
from bkray.errors import DataError

_ROOT = Path(__file__).resolve().parents[2]
REAL_TEXT = _ROOT / os.environ.get("BKRAY_TEST_DATA", "../shared/data")


def test_a_file_is_cut_into_90_5_and_5_percent(tmp_path: Path) -> None:
    text = b"0123456789" * 1000
    (tmp_path / "a.txt").write_bytes(text)
    texts = read(tmp_path / "a.txt").texts
    assert [len(part) for part in texts.values()] == [9000, 500, 500]
    assert b"".join(texts.values()) == text


def test_a_cut_never_splits_a_character(tmp_path: Path) -> None:
    for length in range(40, 60):
        (tmp_path / "a.txt").write_text("x" * (length % 4) + "😀€é" * length, encoding="utf-8")
        texts = read(tmp_path / "a.txt").texts
        assert "".join(part.decode() for part in texts.values()).startswith("x" * (length % 4))


def test_the_standard_library_is_about_10_mb_split_about_90_5_5() -> None:
    corpus = read("stdlib")
    sizes = {split: len(text) for split, text in corpus.texts.items()}
    total = sum(sizes.values())
    assert 5e6 < total < 20e6
    assert 0.85 < sizes["train"] / total < 0.95
    assert 0.02 < sizes["valid"] / total < 0.10
    source = Path(sysconfig.get_paths()["stdlib"]) / "json" / "decoder.py"
    assert source.read_bytes() + SEPARATOR in b"".join(corpus.texts.values())


def test_only_what_every_python_ships_counts_as_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out = ["test/test_json.py", "json/tests/a.py", "site-packages/pip/a.py", "tkinter/a.py"]
    left_out += ["_sysconfigdata__linux.py", "sitecustomize.py", "LICENSE.txt"]
    for name in ["json/decoder.py", "unittest/case.py", *left_out]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    whole = b"".join(read("stdlib").texts.values())
    documents = {part.strip() for part in whole.split(SEPARATOR) if part}
    assert documents == {b"# json/decoder.py", b"# unittest/case.py"}


def test_files_of_a_folder_keep_their_split_when_others_come(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"{i}.txt").write_text(f"document {i}")
    before = read(tmp_path).texts
    (tmp_path / "another.txt").write_text("another document")
    after = read(tmp_path).texts
    for split, text in before.items():
        parts = set(text.split(SEPARATOR))
        assert len(parts) > 1
        assert parts <= set(after[split].split(SEPARATOR))


def test_a_cut_of_a_folder_takes_a_spread_of_its_files(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"{i:03d}.txt").write_text(f"{i:03d}" + "x" * 96)
    train = read(tmp_path, max_bytes=2000).text("train")
    numbers = [int(part[:3]) for part in train.split(SEPARATOR) if part[:3].isdigit()]
    assert len(numbers) > 15
    assert min(numbers) < 60 and max(numbers) > 140


def test_hidden_files_other_suffixes_and_empty_files_of_a_folder_are_left_out(
    tmp_path: Path,
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.txt").write_text("hidden")
    (tmp_path / "b.bin").write_bytes(b"\xff\x00")
    (tmp_path / "c.txt").write_text("")
    (tmp_path / "d.txt").write_text("all there is, some forty characters of it\n")
    corpus = read(tmp_path)
    assert b"".join(corpus.texts.values()).startswith(b"all there is")
    assert corpus.source.startswith("1 text files")


def test_the_hubs_parquet_gives_the_text_of_the_original_files(tmp_path: Path) -> None:
    lines = {"train": ["", " = Title = \n", "", " One line . \n"], "validation": [" v \n"]}
    for split, rows in lines.items():
        path = tmp_path / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.table({"text": rows, "id": [*range(len(rows))]}), path)
    corpus = read(tmp_path)
    assert corpus.texts == {"train": b"\n = Title = \n\n One line . \n", "valid": b" v \n"}


@pytest.mark.parametrize("pattern", ["wiki.{}.tokens", "wiki.{}.raw", "{}.txt"])
def test_wikitext_is_known_by_its_file_names(tmp_path: Path, pattern: str) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / pattern.format(split)).write_text(f"text of {split}\n")
    texts = read(tmp_path).texts
    assert texts == {split: f"text of {split}\n".encode() for split in ("train", "valid", "test")}


def test_wikitext_without_train_trains_on_test_and_says_so() -> None:
    folder = REAL_TEXT / "wikitext-2"
    if not folder.exists():
        pytest.skip(f"no real text at {folder}: set BKRAY_TEST_DATA")
    corpus = read(folder)
    assert corpus.name == "wikitext2-small"
    assert corpus.text("train") == (folder / "test.txt").read_bytes()
    assert corpus.text("valid") == (folder / "valid.txt").read_bytes()
    assert "trained on test, validated on valid" in corpus.source
    with pytest.raises(DataError, match="wikitext2-small has no test split"):
        corpus.text("test")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8-sig")
    assert read(tmp_path / "a.txt").text("train").startswith(b"some")


def test_fingerprint_follows_the_text_and_not_the_place(tmp_path: Path) -> None:
    for name, text in (("a", "one text"), ("b", "one text"), ("c", "two text")):
        (tmp_path / name).write_text(text * 10)
    a, b, c = (read(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_a_missing_path_is_named_with_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no corpus '.*nowhere'.*give stdlib, documents, mixture, recall, a text"
    ):
        read(tmp_path / "nowhere")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.txt is empty"):
        read(tmp_path / "a.txt")


def test_a_wrong_encoding_is_named_with_its_byte_and_offset(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("plain até".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text: byte 0xe9 at offset 8"):
        read(tmp_path / "a.txt")


def test_utf_16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "marked.txt").write_text("some text", encoding="utf-16")
    (tmp_path / "unmarked.txt").write_text("some text", encoding="utf-16-le")
    with pytest.raises(DataError, match=r"marked\.txt is not UTF-8 text: byte 0xff at offset 0"):
        read(tmp_path / "marked.txt")
    with pytest.raises(DataError, match=r"unmarked\.txt is not text: NUL byte at offset 1"):
        read(tmp_path / "unmarked.txt")


def test_one_bad_file_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match=r"bad\.txt is not UTF-8 text.*offset 2"):
        read(tmp_path)


def test_a_folder_without_text_is_an_error_that_names_the_suffixes(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"holds no text.*\.txt"):
        read(tmp_path)


def test_parquet_without_text_is_an_error(tmp_path: Path) -> None:
    train, valid = tmp_path / "train.parquet", tmp_path / "validation.parquet"
    for path in (train, valid):
        pq.write_table(pa.table({"text": ["some", "text"]}), path)
    pq.write_table(pa.table({"body": ["x"]}), train)
    with pytest.raises(DataError, match=r"train\.parquet has no column text, only body"):
        read(tmp_path)
    pq.write_table(pa.table({"text": ["x", None]}), train)
    with pytest.raises(DataError, match=r"train\.parquet has 1 rows without text"):
        read(tmp_path)
    pq.write_table(pa.table({"text": [[1], [2]]}), train)
    with pytest.raises(DataError, match=r"train\.parquet is not a Parquet file with a column"):
        read(tmp_path)
    train.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"train\.parquet is not a Parquet file"):
        read(tmp_path)
