"""Files appear whole or not at all."""

import json
import math
from pathlib import Path

import pytest

from bkray.atomic import replace, write_json, write_text


def test_text_comes_back_and_no_temporary_file_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Grüße\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "Grüße\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replace(target) as temporary:
        temporary.write_bytes(b"half of the new")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_the_old_file_is_readable_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with replace(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with replace(tmp_path / "a") as first, replace(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # renamed last


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    value = {"nan": math.nan, "deep": [math.inf, {"low": -math.inf, "fine": 1.5}], "pair": (1, 2)}
    write_json(tmp_path / "a.json", value)
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"nan": None, "deep": [None, {"low": None, "fine": 1.5}], "pair": [1, 2]}
