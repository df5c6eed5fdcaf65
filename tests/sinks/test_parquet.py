"""The folder of a trial: rows keyed, atomic, resumable; JSON that every reader takes."""

import json
import math
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bkray.errors import ResumeError
from bkray.events import (
    EvalDone,
    Rewound,
    Saving,
    Spiked,
    StepsDone,
    TrialEnded,
    TrialStarted,
    Warned,
    rows,
)
from bkray.sinks.parquet import SCHEMA, ParquetSink, last_attempt, read_rows

CONFIG = {"model.d_model": 64, "train.steps": 400}


def started(attempt: int = 1, step: int = 0, **config: Any) -> TrialStarted:
    return TrialStarted(
        trial_id="0123456789ab",
        sweep="act",
        arm="dense-2",
        seed=1,
        attempt=attempt,
        config=config or CONFIG,
        n_params=10,
        causal=True,
        data_hash="d",
        step=step,
    )


def window(last_step: int, loss: float, n: int = 16) -> StepsDone:
    return StepsDone(
        step=last_step,
        tokens=last_step * 100,
        loss_nats=(loss,) * n,
        grad_norm=(0.5,) * n,
        lr=1e-3,
        window_seconds=0.1,
        metrics={"act/avg_layers_executed": 2.0},
    )


def evaluation(step: int, loss: float) -> EvalDone:
    return EvalDone(step=step, tokens=step * 100, split="val", loss_nats=loss)


def ended(step: int, outcome: str = "ok", **summary: Any) -> TrialEnded:
    return TrialEnded(step=step, outcome=outcome, reason="because", summary=summary)


def losses(folder: Path) -> dict[int, float]:
    """Step to training loss, failing when a step is there twice."""
    table = read_rows(folder).to_pylist()
    pairs = [(row["step"], row["value"]) for row in table if row["name"] == "train/loss_nats"]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_rows_come_back_as_the_events_told_them(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    events = [window(16, 2.0), evaluation(16, 1.9), ended(16, steps=16)]
    for event in [started(), *events]:
        sink(event)
    sink.close()
    table = read_rows(tmp_path)
    assert table.schema.equals(SCHEMA)
    told = [tuple(row) for event in events for row in rows(event)]
    read = [
        tuple(row[name] for name in ("kind", "step", "split", "name", "value"))
        for row in table.to_pylist()
    ]
    assert read == told
    assert set(table["trial_id"].to_pylist()) == {"0123456789ab"}


def test_nan_and_infinity_stay_what_they_are_in_the_rows(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    sink(started())
    sink(window(1, math.nan, n=1))
    sink(evaluation(1, math.inf))
    values = {row["name"]: row["value"] for row in read_rows(tmp_path).to_pylist()}
    assert math.isnan(values["train/loss_nats"])
    assert values["val/loss_nats"] == math.inf


def test_config_and_outcome_are_valid_json(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    sink(started())
    assert not (tmp_path / "outcome.json").exists()
    sink(ended(7, "diverged", best_val_loss_nats=math.nan, steps=7, device="cpu"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {
        "trial_id": "0123456789ab",
        "sweep": "act",
        "arm": "dense-2",
        "seed": 1,
        "attempt": 1,
        "config": CONFIG,
        "n_params": 10,
        "causal": True,
        "data_hash": "d",
        "split": 1,
    }
    outcome = json.loads((tmp_path / "outcome.json").read_text(), parse_constant=pytest.fail)
    assert outcome == {
        "attempt": 1,
        "outcome": "diverged",
        "stop_reason": "because",
        "step": 7,
        "summary": {"best_val_loss_nats": None, "steps": 7, "device": "cpu"},
        "warnings": [],
    }


def test_a_resumed_trial_has_every_step_once_and_the_later_numbers(tmp_path: Path) -> None:
    first = ParquetSink(tmp_path)
    first(started())
    for step in range(16, 161, 16):
        first(window(step, 1.0))
    first(evaluation(100, 1.5))
    first(evaluation(160, 1.6))
    first(ended(160, "interrupted", steps=160))
    second = ParquetSink(tmp_path)
    second(started(attempt=2, step=96))
    assert not (tmp_path / "outcome.json").exists()  # the trial is running again
    second(window(112, 2.0))
    second(ended(112, "ok", steps=112))
    assert losses(tmp_path) == {s: (1.0 if s <= 96 else 2.0) for s in range(1, 113)}
    table = read_rows(tmp_path).to_pylist()
    assert [r["value"] for r in table if r["kind"] == "end"] == [112.0]
    assert not [r for r in table if r["kind"] == "eval"]  # both lay beyond step 96


def test_an_interrupted_trial_that_goes_on_where_it_stopped_has_one_end(tmp_path: Path) -> None:
    for attempt, start, outcome in [(1, 0, "interrupted"), (2, 16, "ok")]:
        sink = ParquetSink(tmp_path)
        sink(started(attempt=attempt, step=start))
        sink(window(start + 16, 1.0))
        sink(ended(start + 16, outcome, steps=start + 16))
    table = read_rows(tmp_path).to_pylist()
    assert [r["value"] for r in table if r["kind"] == "end"] == [32.0]
    assert sorted(losses(tmp_path)) == list(range(1, 33))


def test_an_attempt_that_died_before_it_wrote_takes_nothing_away(tmp_path: Path) -> None:
    first = ParquetSink(tmp_path)
    first(started())
    first(window(16, 1.0))
    first.close()
    ParquetSink(tmp_path)(started(attempt=2, step=0))
    assert losses(tmp_path) == dict.fromkeys(range(1, 17), 1.0)


def test_three_attempts_are_cut_at_the_earliest_later_start(tmp_path: Path) -> None:
    for attempt, start, end in [(1, 0, 48), (2, 48, 64), (3, 16, 32)]:
        sink = ParquetSink(tmp_path)
        sink(started(attempt=attempt, step=start))
        for step in range(start + 16, end + 1, 16):
            sink(window(step, float(attempt)))
        sink.close()
    assert losses(tmp_path) == {s: (1.0 if s <= 16 else 3.0) for s in range(1, 33)}


def test_the_same_evaluation_told_again_counts_once(tmp_path: Path) -> None:
    for attempt, loss in [(1, 1.5), (2, 1.25)]:
        sink = ParquetSink(tmp_path)
        sink(started(attempt=attempt, step=0 if attempt == 1 else 100))
        sink(evaluation(100, loss))
        sink.close()
    [row] = [r for r in read_rows(tmp_path).to_pylist() if r["name"] == "val/loss_nats"]
    assert (row["attempt"], row["value"]) == (2, 1.25)


def test_rows_before_a_checkpoint_survive_a_kill(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    sink(started())
    for step in (16, 32):
        sink(window(step, 1.0))
    assert losses(tmp_path) == {}  # buffered
    sink(window(40, 1.0, n=8))
    sink(Saving(step=40))
    assert sorted(losses(tmp_path)) == list(range(1, 41))  # on disk without close


def test_long_windows_between_evaluations_are_written_in_parts(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    sink(started())
    for step in range(16, 16 * 121, 16):
        sink(window(step, 1.0))
    assert len(losses(tmp_path)) >= 800
    assert len(list((tmp_path / "events").iterdir())) == 2
    sink.close()
    assert len(losses(tmp_path)) == 16 * 120


def test_an_attempt_number_cannot_be_used_twice(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    sink(started(attempt=2))
    sink(evaluation(1, 1.0))
    with pytest.raises(ResumeError, match="already holds rows of attempt 2"):
        ParquetSink(tmp_path)(started(attempt=2))


def test_the_last_attempt_is_known_from_the_folder(tmp_path: Path) -> None:
    assert last_attempt(tmp_path) == 0
    ParquetSink(tmp_path)(started(attempt=3))
    assert last_attempt(tmp_path) == 3


def test_a_rewind_takes_back_what_it_undid_and_keeps_the_spike(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    sink(started())
    for step in (16, 32, 48):
        sink(window(step, 1.0))
    sink(evaluation(48, 9.0))
    sink(Spiked(step=40, ratio=3.0))
    sink(Rewound(step=48, to_step=16))
    sink(window(32, 2.0))
    sink.close()
    assert losses(tmp_path) == {s: (1.0 if s <= 16 else 2.0) for s in range(1, 33)}
    kinds = {row["kind"]: row["value"] for row in read_rows(tmp_path).to_pylist()}
    assert kinds.keys() == {"steps", "spike", "rewind"}
    assert (kinds["spike"], kinds["rewind"]) == (3.0, 16.0)


def test_what_a_rewind_undid_stays_away_when_a_later_attempt_forgets_the_rewind(
    tmp_path: Path,
) -> None:
    sink = ParquetSink(tmp_path)
    sink(started())
    masked = replace(window(32, 1.0), masked=(20,))
    for event in [window(16, 1.0), masked, Rewound(step=40, to_step=16), window(32, 2.0)]:
        sink(event)
    sink.close()
    later = ParquetSink(tmp_path)
    later(started(attempt=2, step=32))
    later(evaluation(48, 1.5))
    rows_left = read_rows(tmp_path).to_pylist()
    assert not [row for row in rows_left if row["name"] == "stability/masked"]
    assert losses(tmp_path)[32] == 2.0


def test_warnings_stand_beside_the_outcome(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    for event in [started(), Warned(step=0, message="one"), Warned(step=3, message="two")]:
        sink(event)
    sink(ended(3))
    assert json.loads((tmp_path / "outcome.json").read_text())["warnings"] == ["one", "two"]


_FILLS_THE_DISK = """
import errno, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from bkray.errors import StorageError
from bkray.sinks.parquet import ParquetSink
from test_parquet import evaluation, losses, started, window
folder = Path(sys.argv[1])
sink = ParquetSink(folder)
sink(started())
sink(window(16, 1.0))
sink(evaluation(16, 1.5))
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
else:
    (folder / "ballast").write_bytes(b"x" * 2**16)
try:
    for step in range(32, 16 * 10000, 16):
        sink(window(step, step + 0.123))
    raise SystemExit("the disk was never full")
except StorageError as error:
    assert "no room to write" in str(error) and "parquet" in str(error), error
    assert error.__cause__.errno in (errno.ENOSPC, errno.EFBIG)
written = losses(folder)
assert len(written) >= 16 and all(written[step] == 1.0 for step in range(1, 17)), written
assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
(folder / "ballast").unlink(missing_ok=True)
sink.close()  # there is room again, and what waited is not lost
later = losses(folder)
assert len(later) > len(written) and sorted(later) == list(range(1, len(later) + 1))
print("readable")
"""


def test_a_file_that_may_not_grow_is_one_clear_error_and_nothing_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FILLS_THE_DISK, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run([*command, "8000"], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("readable\n", "")


def test_a_full_disk_is_one_clear_error_and_nothing_is_lost(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk: unshare -Urm is refused")
    mount = f'mount -t tmpfs -o size=80k tmpfs {shlex.quote(str(tmp_path))} && exec "$@"'
    command = [sys.executable, "-c", _FILLS_THE_DISK, str(tmp_path), str(Path(__file__).parent)]
    boxed = ["unshare", "-Urm", "sh", "-c", mount, "sh", *command]
    done = subprocess.run(boxed, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("readable\n", "")


def test_half_written_files_are_not_read(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    sink(started())
    sink(evaluation(1, 1.0))
    (tmp_path / "events" / "1-00001.parquet.abcd1234.tmp").write_bytes(b"PAR1 and no more")
    assert read_rows(tmp_path).num_rows == 1


def test_a_folder_without_events_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path).num_rows == 0
    assert read_rows(tmp_path / "missing").schema.equals(SCHEMA)
