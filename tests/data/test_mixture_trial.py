"""A trial on the mixture with a learned length, end to end."""

import itertools
import math
from pathlib import Path

import pytest
from trials import numbers, of, play, short_config

from bkray.atomic import write_json
from bkray.config import TrialConfig
from bkray.data.mixture import KINDS
from bkray.data.shards import prepare
from bkray.errors import DataError
from bkray.events import EvalDone, Event, Measured, StepsDone
from bkray.overrides import flatten
from bkray.trial import compose, evaluate_checkpoint, run

ROWS = 8


def config(**knobs: object) -> TrialConfig:
    given = {
        "length": "learned",
        "length_list": "4,8,16,32",
        "length_penalty": 0.5,
        "n_seq": 32,
        "max_bytes": 123_000,
        "eval_windows": 30,
        "batch_size": ROWS,
    }
    return short_config(Path("mixture"), **{**given, **knobs})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    folder = tmp_path_factory.mktemp("finished")
    events = play(config(), folder)
    write_json(folder / "config.json", {"config": flatten(config())})
    return folder, events


def test_it_is_scored_per_kind_with_its_lengths(finished: tuple[Path, list[Event]]) -> None:
    events = finished[1]
    last = of(EvalDone, events)[-1]
    said = last.metrics
    losses = [said[f"kinds/{kind}/loss_nats"] for kind in KINDS]
    assert last.loss_nats == pytest.approx(sum(losses) / 3, rel=1e-12), "ten windows of each"
    for kind, loss in zip(KINDS, losses, strict=True):
        assert said[f"kinds/{kind}/ppl"] == pytest.approx(math.exp(loss))
    lengths = [said[f"kinds/{kind}/avg_length"] for kind in KINDS]
    assert said["length/avg_length"] == pytest.approx(sum(lengths) / 3)
    assert sum(said[f"length/share_at_{n}"] for n in (4, 8, 16, 32)) == pytest.approx(1)
    assert said["depth/avg_layers_executed"] == pytest.approx(2 * said["length/avg_length"] / 32)
    assert said["length/share_beyond"] == pytest.approx(said["depth/share_at_layer_0"])
    assert 0 < said["length/share_beyond"] < 1


def test_its_summary_counts_all_sites(finished: tuple[Path, list[Event]]) -> None:
    said = finished[1][-1].summary  # type: ignore[union-attr]
    metrics = of(EvalDone, finished[1])[-1].metrics
    assert said["avg_predicted_length"] == metrics["length/avg_length"]
    assert said["avg_layers_executed"] == metrics["depth/avg_layers_executed"]
    assert said["speedup_estimate"] == pytest.approx(32 / metrics["length/avg_length"])
    assert of(Measured, finished[1])[0].metrics["speed/speedup_measured"] > 0
    assert of(StepsDone, finished[1])[0].loss_nats[0] < 6


def test_a_checkpoint_is_scored_on_the_whole_of_a_split(
    finished: tuple[Path, list[Event]],
) -> None:
    _, valid = evaluate_checkpoint(finished[0], "valid")
    _, test = evaluate_checkpoint(finished[0], "test")
    for score in (valid, test):
        losses = [score.metrics[f"kinds/{kind}/loss_nats"] for kind in KINDS]
        assert score.loss_nats == pytest.approx(sum(losses) / 3, rel=1e-12)
    assert valid.loss_nats != test.loss_nats


def test_the_first_rows_of_validation_hold_all_kinds() -> None:
    chosen = config()
    trial = compose(chosen, prepare(chosen.data, 32), None)
    distinct = [len(row.unique()) for row in trial.validation[0][:ROWS]]
    patterns, uniform = distinct[::3], distinct[2::3]
    assert max(patterns) <= 8 < 24 < min(uniform)
    assert trial.task.kinds == KINDS


def test_it_trains_on_windows_of_one_segment_each() -> None:
    chosen = config(batch_size=400)
    trial = compose(chosen, prepare(chosen.data, 32), None)
    next(trial.batches)
    starts = trial.batches.last_taken[1]
    assert max(start % 1025 for start in starts) + 32 <= 1024
    assert {start // 1025 % 3 for start in starts} == {0, 1, 2}


def test_a_stopped_trial_goes_on_with_the_same_windows(
    finished: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    begun = play(config(), tmp_path, stop_at=20)
    ended = play(config(), tmp_path)
    assert numbers(list(itertools.chain(begun, ended))) == numbers(finished[1])


def test_a_context_longer_than_a_segment_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(DataError, match=r"model\.n_seq=1025 does not fit"):
        next(run(config(n_seq=1025, length="fixed", length_list=None, length_penalty=None), None))
