"""A sweep's folder at a URI can be resumed at any moment, however its server behaves."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from s3 import BUCKET, Trouble, s3

from bkray.atomic import write_json
from bkray.cluster.mirror import Mirror, fetched, mirrored
from bkray.cluster.storage import Storage
from bkray.errors import ConfigError, ResumeError, UnreachableError

PARTS = ("attempt.json", "config.json", "events/1-00000.parquet", "checkpoints/last.pt")


@pytest.fixture(scope="module")
def trouble() -> Iterator[Trouble]:
    with s3() as found:
        yield found


@pytest.fixture(params=["file", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/there"
    request.getfixturevalue("trouble")
    return f"s3://{BUCKET}/{tmp_path.name}/there"


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("http://host/x", "s3://"),
        ("s3://bucket", "plain place"),
        ("s3://key:secret@bucket/x", "credentials"),
        ("s3://bucket/x?endpoint_override=h", "credentials"),
    ],
)
def test_what_is_no_place_is_refused(place: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Storage(place)


def test_a_file_comes_back_as_it_was(uri: str, tmp_path: Path) -> None:
    storage, own = Storage(uri), tmp_path / "own"
    assert storage.names() == []
    for words in ("first", "second"):
        own.write_text(words)
        storage.put(own, "trials/a/x.json")
    assert storage.names() == ["trials/a/x.json"]
    storage.get("trials/a/x.json", tmp_path / "new" / "back")
    assert (tmp_path / "new" / "back").read_text() == "second"
    storage.delete("trials/a/x.json")
    storage.delete("trials/a/x.json")
    assert storage.names() == []
    with pytest.raises(ResumeError, match="outside"):
        storage.get("../x", tmp_path / "y")


def sweep_at(folder: Path) -> Path:
    """Write what a sweep leaves, so far as its order matters."""
    (folder / "trials").mkdir(parents=True)
    write_json(folder / "sweep.json", {"name": "t", "started": "now", "resumed": []})
    with closing(sqlite3.connect(folder / "study.db")) as study:
        study.execute("CREATE TABLE told (number)")
    for trial_id in ("a", "b"):
        for part in (*PARTS, "outcome.json"):
            path = folder / "trials" / trial_id / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1")
    (folder / ".driver").write_text("token")
    (folder / "trials/a/.stop").write_text("x")
    (folder / "trials/a/checkpoints/last.pt.1.tmp").write_text("x")
    return folder


class Failing(Storage):
    """Takes so many files and then no other."""

    n_left = 0

    def put(self, path: Path, name: str) -> None:
        if not self.n_left:
            raise OSError("the network is gone")
        self.n_left -= 1
        super().put(path, name)


def test_what_is_there_can_be_resumed_at_any_moment(tmp_path: Path) -> None:
    folder = sweep_at(tmp_path / "here")
    told: list[str] = []
    n_files = 2 * 5 + 2
    for n_puts in range(n_files + 1):
        storage = Failing(f"file://{tmp_path}/there{n_puts}")
        storage.n_left = n_puts
        shutil.rmtree(folder / ".mirror", ignore_errors=True)
        done = Mirror(folder, storage, told.append)._tried()
        assert done == (n_puts == n_files)
        names = set(storage.names())
        for trial_id in ("a", "b"):
            has = {part: f"trials/{trial_id}/{part}" in names for part in (*PARTS, "outcome.json")}
            assert has["outcome.json"] <= has["checkpoints/last.pt"]
            assert has["checkpoints/last.pt"] <= has["events/1-00000.parquet"]
            assert has["events/1-00000.parquet"] <= has["attempt.json"]
            assert ("study.db" in names) <= has["outcome.json"]
    assert len(names) == n_files, "scratch files stay here"
    assert told
    assert "the network is gone; the sweep goes on" in told[0]


def test_only_changes_are_sent_and_what_goes_goes_there_too(tmp_path: Path) -> None:
    folder, storage = sweep_at(tmp_path / "here"), Failing(f"file://{tmp_path}/there")
    storage.n_left = 100
    Mirror(folder, storage, print).send()
    (folder / "trials/a/outcome.json").unlink()
    (folder / "trials/a/attempt.json").write_text("22")
    storage.n_left = 1
    Mirror(folder, storage, print).send()  # a driver that comes later knows what was sent
    assert "trials/a/outcome.json" not in storage.names()
    assert storage.n_left == 0


def test_a_server_that_fails_costs_one_warning_and_nothing_else(
    trouble: Trouble, tmp_path: Path
) -> None:
    folder = sweep_at(tmp_path / "here")
    uri, told = f"s3://{BUCKET}/fails", []
    mirror = Mirror(folder, Storage(uri), told.append, every_seconds=0.05)
    trouble.fails = True
    mirror.start()
    assert not mirror.close(patience_seconds=0.0)
    assert trouble.n_failed > 1
    (folder / "trials/b/outcome.json").write_text("later")
    trouble.fails, trouble.delay_seconds = False, 0.05
    again = Mirror(folder, Storage(uri), told.append)
    again.start()
    assert again.close()
    trouble.delay_seconds = 0.0
    assert len(told) == 1
    assert told[0].count("\n") == 0
    assert "cannot be reached" in told[0]
    back = fetched(uri, tmp_path / "runs")
    assert (back / "trials/b/outcome.json").read_text() == "later"
    assert not (back / "trials/a/.stop").exists()


def test_a_bucket_that_is_not_there_is_told_before_anything_runs(
    trouble: Trouble, tmp_path: Path
) -> None:
    with (
        pytest.raises(UnreachableError, match="s3://nowhere/x cannot be reached"),
        mirrored(tmp_path / "here", "s3://nowhere/x", print, resume=False),
    ):
        raise AssertionError("it ran")


def test_a_sweep_is_fetched_once_and_never_over_another(tmp_path: Path) -> None:
    uri, runs = f"file://{tmp_path}/there/x", tmp_path / "runs"
    with pytest.raises(ResumeError, match="holds no sweep"):
        fetched(uri, runs)
    folder = sweep_at(tmp_path / "here")
    with mirrored(folder, uri, print, resume=False):
        pass
    with (
        pytest.raises(ResumeError, match="already holds a sweep"),
        mirrored(folder, uri, print, resume=False),
    ):
        pass
    first = fetched(uri, runs)
    assert first == runs / "t" / "x"
    write_json(first / "sweep.json", {"name": "t", "started": "now", "resumed": ["today"]})
    assert fetched(uri, runs) == first, "what is here is newer"
    assert json.loads((first / "sweep.json").read_text())["resumed"] == ["today"]
    write_json(tmp_path / "there/x/sweep.json", json.loads('{"name": "t", "started": "then"}'))
    with pytest.raises(ResumeError, match="went on elsewhere"):
        fetched(uri, runs)
    assert [path.name for path in runs.iterdir()] == ["t"], "nothing half fetched is left"
