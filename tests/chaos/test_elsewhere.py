"""A sweep that dies with its machine goes on at another one, from what is at its URI."""

import json
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from intact import flaws
from s3 import BUCKET, s3
from storm import SMALL
from tiny import write_text
from victims import Victim

from bkray.cluster.storage import Storage

pytestmark = pytest.mark.slow

N_TRIALS = 2
URI = f"s3://{BUCKET}/runs/small/x"


def test_a_sweep_goes_on_from_its_uri_at_an_empty_machine(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", seed=0)
    first, second, log = tmp_path / "first", tmp_path / "second", tmp_path / "log.txt"
    words = ["sweep", SMALL, "--preset", "smoke", "--trials", str(N_TRIALS), "--local"]
    words += [
        "--scheduler",
        "none",
        "--out",
        URI,
        f"data.corpus={text}",
        "steps=1024",
        "eval_every=64",
        "checkpoint_every=64",
    ]
    first.mkdir()
    second.mkdir()
    with s3() as trouble:
        trouble.delay_seconds = 0.05
        victim = Victim(words, first, log)
        storage = Storage(URI)
        deadline = time.monotonic() + 300
        while not any(name.endswith("last.pt") for name in storage.names()):
            assert victim.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        victim.end()
        shutil.rmtree(first)
        saved = _steps_in(storage, tmp_path)
        resumed = Victim(["resume", URI], second, log)
        assert resumed.wait() == 0, log.read_text()
        out = second / "runs/small_sweep/x"
        here = {str(path.relative_to(out)) for path in out.rglob("*.*") if path.is_file()}
        there = set(storage.names())
    assert not any(flaws(out, n_planned=N_TRIALS, done={}))
    assert {name for name in here if not name.startswith(".")} == there
    attempts = [json.loads(path.read_text()) for path in out.glob("trials/*/attempt.json")]
    assert [said["number"] for said in attempts].count(2) == 1
    (again,) = out.glob("trials/*/events/2-00000.parquet")
    assert 16 < min(pq.read_table(again)["step"].to_pylist()) <= saved + 1, "it began again"


def _steps_in(storage: Storage, scratch: Path) -> int:
    """Return the steps of the first trial that were there when its machine was gone."""
    steps = [0]
    for name in storage.names():
        if "/events/" in name:
            storage.get(name, scratch / "part.parquet")
            steps += pq.read_table(scratch / "part.parquet")["step"].to_pylist()
    return max(steps)
