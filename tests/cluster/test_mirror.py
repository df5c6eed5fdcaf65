"""A sweep's folder at a URI can be resumed at any moment, however its server behaves."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from s3 import BUCKET, Trouble, s3

from bkray.atomic import write_json
from bkray.cluster.mirror import Mirror, fetched, mirrored
from bkray.cluster.storage import Storage
from bkray.errors import ConfigError, ResumeError, UnreachableError

PARTS = ("attempt.json", "config.json", "events/1-00000.parquet", "checkpoints/last.pt")

SAID = {"name": "t", "source": "act", "started": "now", "resumed": []}


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
        ("s3://bucket/runs/..", "plain place"),
        ("s3://bucket/runs/.", "plain place"),
        ("s3://bucket/runs/%2e%2e", "plain place"),
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
    write_json(folder / "sweep.json", SAID)
    with closing(sqlite3.connect(folder / "study.db")) as study:
        study.execute("CREATE TABLE told (number)")
    for trial_id in ("a", "b"):
        for part in (*PARTS, "outcome.json"):
            path = folder / "trials" / trial_id / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1")
    (folder / ".driver").write_text("token")
    (folder / "trials/a/.stop").write_text("x")
    (folder / "trials/a/secret").symlink_to("/etc/hostname")
    (folder / "trials/a/nowhere").symlink_to("/nowhere")
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
    write_json(first / "sweep.json", {**SAID, "resumed": ["today"]})
    assert fetched(uri, runs) == first, "what is here is newer"
    assert json.loads((first / "sweep.json").read_text())["resumed"] == ["today"]
    for other in (
        {"started": "then"},
        {"resumed": ["yesterday"]},
        {"resumed": ["today", "later"]},
    ):
        write_json(tmp_path / "there/x/sweep.json", {**SAID, **other})
        with pytest.raises(ResumeError, match="went on elsewhere"):
            fetched(uri, runs)
    assert [path.name for path in runs.iterdir()] == ["t"], "nothing half fetched is left"


def test_who_resumes_here_never_writes_over_what_was_done_elsewhere(tmp_path: Path) -> None:
    uri, here = f"file://{tmp_path}/there/x", sweep_at(tmp_path / "here")
    with mirrored(here, uri, print, resume=False):
        pass
    other = fetched(uri, tmp_path / "runs")
    with mirrored(other, uri, print, resume=True):
        write_json(other / "sweep.json", {**SAID, "resumed": ["at B"]})
        (other / "trials/b/outcome.json").write_text("of B")
    for said in (SAID, {**SAID, "resumed": ["at A"]}, {**SAID, "started": "then"}):
        write_json(here / "sweep.json", said)
        with (
            pytest.raises(ResumeError, match="went on elsewhere"),
            mirrored(here, uri, print, resume=True),
        ):
            raise AssertionError("it ran")
    assert (tmp_path / "there/x/trials/b/outcome.json").read_text() == "of B"
    with mirrored(other, uri, print, resume=True):
        write_json(other / "sweep.json", {**SAID, "resumed": ["at B", "again"]})


def test_what_a_place_has_lost_is_sent_again(tmp_path: Path) -> None:
    uri, here = f"file://{tmp_path}/there/x", sweep_at(tmp_path / "here")
    with mirrored(here, uri, print, resume=False):
        pass
    names = Storage(uri).names()
    (here / ".mirror/17").write_text("left by a driver that was killed")
    shutil.rmtree(tmp_path / "there/x")
    with mirrored(here, uri, print, resume=True):
        pass
    assert Storage(uri).names() == names
    assert [path.name for path in (here / ".mirror").iterdir()] == ["sent.json"]


@pytest.mark.parametrize("source", ["runs/t/x/trials/a/own.py", "runs/t/y/own.py"])
def test_no_program_is_taken_from_a_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    uri, here = f"file://{tmp_path}/there/x", sweep_at(tmp_path / "here")
    write_json(here / "sweep.json", {**SAID, "source": source})
    with mirrored(here, uri, print, resume=False):
        pass
    with pytest.raises(ResumeError, match=r"brings the program 'runs/t/./"):
        fetched(uri, Path("runs"))
    write_json(tmp_path / "there/x/sweep.json", {**SAID, "source": str(tmp_path / "own.py")})
    Storage(uri).put(here / "sweep.json", "trials/a/model.py")
    with pytest.raises(ResumeError, match=r"brings the program 'trials/a/model\.py'"):
        fetched(uri, Path("runs"))
    assert not list(Path("runs").iterdir())
    Storage(uri).delete("trials/a/model.py")
    assert fetched(uri, Path("runs")).is_dir(), "the user's own file is another matter"


class Living(Mirror):
    """A mirror of a trial that goes on: a step of its life before each file is taken."""

    n_steps = 0

    def live(self) -> None:
        """Write the next of: rows, the best, the last in two moves, an outcome, what is told."""
        number, step = divmod(self.n_steps, 6)
        self.n_steps += 1
        trial = self._folder / f"trials/{number % 2}"
        (trial / "events").mkdir(parents=True, exist_ok=True)
        (trial / "checkpoints").mkdir(exist_ok=True)
        last, previous = trial / "checkpoints/last.pt", trial / "checkpoints/previous.pt"
        if step == 0:
            write_json(trial / f"events/1-{number:05d}.parquet", number)
        elif step == 1:
            write_json(trial / "checkpoints/best.pt", number)
        elif step == 2 and last.exists():
            last.replace(previous)
        elif step == 3:
            write_json(last, number)
        elif step == 4:
            write_json(trial / "outcome.json", number)
        elif step == 5:
            with closing(sqlite3.connect(self._folder / "study.db")) as told:
                told.execute("CREATE TABLE IF NOT EXISTS told (number)")
                told.execute("INSERT INTO told VALUES (?)", [number])
                told.commit()

    def _take(self, name: str) -> Any:
        self.live()
        return super()._take(name)


class Watched(Storage):
    """Checks after each file that the sweep could be resumed from here; the trial goes on."""

    mirror: Living

    def put(self, path: Path, name: str) -> None:
        super().put(path, name)
        self.look()
        self.mirror.live()

    def delete(self, name: str) -> None:
        super().delete(name)
        self.look()

    def look(self) -> None:
        root = Path(self.uri.removeprefix("file://"))
        said = {name: _number(root / name) for name in self.names()}
        for trial in ("trials/0", "trials/1"):
            rows = [said[name] for name in said if name.startswith(f"{trial}/events/")]
            points = [said.get(f"{trial}/checkpoints/{n}.pt", -1) for n in ("last", "previous")]
            best = said.get(f"{trial}/checkpoints/best.pt", -1)
            outcome = said.get(f"{trial}/outcome.json", -1)
            assert outcome <= max(points) <= best <= max(rows, default=-1), (trial, said)
        told = said.get("study.db", -1)
        assert told <= max(said.get(f"trials/{n}/outcome.json", -1) for n in (0, 1)), said


def _number(path: Path) -> int:
    if path.name != "study.db":
        return int(path.read_text())
    with closing(sqlite3.connect(path)) as study:
        return int(study.execute("SELECT max(number) FROM told").fetchone()[0])


def test_a_folder_that_changes_while_it_is_copied_can_be_resumed_at_any_moment(
    tmp_path: Path,
) -> None:
    for n_before in range(6, 19):
        folder, storage = tmp_path / f"here{n_before}", Watched(f"file://{tmp_path}/t{n_before}")
        folder.mkdir()
        mirror = storage.mirror = Living(folder, storage, print)
        for _ in range(n_before):
            mirror.live()
        for _ in range(12):
            mirror.send()
        assert len(storage.names()) > 6
