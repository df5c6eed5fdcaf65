"""The token cache: what is in it, when it is built again, and two processes at once."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bkray.config import DataConfig
from bkray.data.shards import Shards, prepare
from bkray.errors import DataError

N_SEQ = 16


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i} of {i % 9} words\n" for i in range(200)))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def prepared(text: Path, cache: Path, **knobs: Any) -> Shards:
    return prepare(DataConfig(corpus=str(text), **knobs), N_SEQ, cache)


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_unigram_entropy_is_that_of_the_training_tokens(tmp_path: Path, cache: Path) -> None:
    """Half ``a``, a quarter ``b`` and ``c`` each: 1.5 bits."""
    (tmp_path / "a.txt").write_text("aabc" * 1000)
    shards = prepared(tmp_path / "a.txt", cache)
    assert shards.unigram_entropy_nats == pytest.approx(1.5 * math.log(2), rel=1e-12)


def test_tokens_are_a_view_of_the_file_and_cannot_be_changed(text: Path, cache: Path) -> None:
    tokens = prepared(text, cache).tokens("train")
    assert not tokens.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_several_shards_give_the_same_tokens_as_one(text: Path, tmp_path: Path) -> None:
    config = DataConfig(corpus=str(text), tokenizer="words", vocab_size=50)
    one = prepare(config, N_SEQ, tmp_path / "one")
    several = prepare(config, N_SEQ, tmp_path / "several", shard_tokens=100)
    assert len(list((tmp_path / "several").glob("*/train-*.arrow"))) > 5
    assert several.fingerprint == one.fingerprint
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(several.tokens(split), one.tokens(split))
        assert not several.tokens(split).flags.writeable


def test_manifest_says_what_is_in_the_folder(text: Path, cache: Path) -> None:
    shards = prepared(text, cache, tokenizer="words", vocab_size=20)
    manifest = json.loads((folders(cache)[0] / "manifest.json").read_text())
    assert manifest["vocab_size"] == shards.vocab_size == 20
    assert manifest["fingerprint"] == shards.fingerprint
    assert manifest["n_tokens"] == {s: len(shards.tokens(s)) for s in ("train", "valid", "test")}
    assert "text file" in manifest["source"]


def test_second_time_comes_from_the_cache(text: Path, cache: Path) -> None:
    first = prepared(text, cache)
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")}
    assert prepared(text, cache).fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")} == files


def test_changed_text_of_equal_size_and_time_is_read_again(text: Path, cache: Path) -> None:
    before, times = prepared(text, cache), text.stat()
    text.write_text(text.read_text().replace("words", "WORDS"))
    os.utime(text, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = prepared(text, cache)
    assert after.fingerprint != before.fingerprint
    assert b"WORDS" in after.vocabulary.decode(after.tokens("train"))


def test_equal_text_elsewhere_has_the_same_fingerprint_and_its_own_source(
    text: Path, cache: Path
) -> None:
    shutil.copy(text, text.with_name("copy.txt"))
    one, other = prepared(text, cache), prepared(text.with_name("copy.txt"), cache)
    assert one.fingerprint == other.fingerprint
    assert "copy.txt" in other.source and "copy.txt" not in one.source


def test_each_setting_that_changes_tokens_changes_the_fingerprint(text: Path, cache: Path) -> None:
    settings: list[dict[str, Any]] = [{}, {"max_bytes": 1024}]
    settings += [{"tokenizer": "words", "vocab_size": size} for size in (20, 21)]
    prints = [prepared(text, cache, **knobs).fingerprint for knobs in settings]
    assert len(set(prints)) == len(settings)


def _truncate(folder: Path) -> None:
    path = folder / "train-00000.arrow"
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_token(folder: Path) -> None:
    path = folder / "train-00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _lose_a_shard(folder: Path) -> None:
    (folder / "valid-00000.arrow").unlink()


def _lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _garble_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"fingerpr')


def _change_a_word(folder: Path) -> None:
    path = folder / "words.json"
    path.write_text(path.read_text().replace("line", "lime"))


def _leave_a_half_written_one(folder: Path) -> None:
    folder.rename(folder.with_suffix(".new"))
    (folder.with_suffix(".new") / "manifest.json").unlink()


DAMAGES = [_truncate, _flip_a_token, _lose_a_shard, _lose_the_manifest, _garble_the_manifest]
DAMAGES += [_change_a_word, _leave_a_half_written_one]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(
    text: Path, cache: Path, damage: Callable[[Path], None]
) -> None:
    knobs: dict[str, Any] = {"tokenizer": "words", "vocab_size": 40}
    whole = prepared(text, cache, **knobs)
    said = whole.vocabulary.decode(whole.tokens("train"))
    damage(folders(cache)[0])
    again = prepared(text, cache, **knobs)
    assert again.fingerprint == whole.fingerprint
    assert again.vocabulary.decode(again.tokens("train")) == said
    assert len(folders(cache)) == 1


def test_processes_that_prepare_at_once_all_end_well(text: Path, cache: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from bkray.config import DataConfig;"
        "from bkray.data.shards import prepare;"
        "print(prepare(DataConfig(corpus=sys.argv[1]), 16, Path(sys.argv[2])).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(text), str(cache)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60) for process in processes]
    assert said == [(prepared(text, cache).fingerprint + "\n", "")] * 4
    assert len(folders(cache)) == 1


def test_too_little_text_says_how_much_there_is_and_how_much_is_needed(
    tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "a.txt").write_text("x" * 340)
    config = DataConfig(corpus=str(tmp_path / "a.txt"))
    assert len(prepare(config, 16, cache).tokens("valid")) == 17
    with pytest.raises(DataError, match=r"valid split has 17 tokens.*n_seq=17 needs 18"):
        prepare(config, 17, cache)
    with pytest.raises(DataError, match=r"train split has 306 tokens.*n_seq=400 needs 401"):
        prepare(config, 400, cache)


def test_a_missing_split_is_an_error(tmp_path: Path, cache: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_text("x" * 50)
    with pytest.raises(DataError, match="has no test split"):
        prepared(tmp_path, cache).tokens("test")


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(
    text: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cache .*file cannot be written.*BKRAY_CACHE"):
        prepared(text, tmp_path / "file")


def test_cache_folder_comes_from_the_environment(
    text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BKRAY_CACHE", str(cache))
    prepare(DataConfig(corpus=str(text)), N_SEQ)
    assert len(folders(cache)) == 1
