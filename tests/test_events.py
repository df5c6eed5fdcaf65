"""Events as rows: names, steps, splits, and nothing lost or doubled."""

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from bkray.events import (
    EvalDone,
    Event,
    Measured,
    MemoryPeak,
    Row,
    Spiked,
    StepsDone,
    TrialEnded,
    TrialStarted,
    metric_name,
    rows,
)

STARTED = TrialStarted(
    trial_id="a",
    sweep="s",
    arm="",
    seed=0,
    attempt=1,
    config={},
    n_params=1,
    causal=True,
    data_hash="d",
)


def window(**changes: Any) -> StepsDone:
    given: dict[str, Any] = {
        "step": 12,
        "tokens": 300,
        "loss_nats": (3.0, 2.0, 1.0),
        "grad_norm": (0.5, 0.25, 0.125),
        "lr": 0.01,
        "window_seconds": 0.5,
        "metrics": {"train/ponder_cost": 2.5},
    }
    return StepsDone(**{**given, **changes})


def test_a_window_has_a_row_per_step_and_one_per_further_number() -> None:
    assert list(rows(window())) == [
        Row("steps", 10, "train", "train/loss_nats", 3.0),
        Row("steps", 10, "train", "train/grad_norm", 0.5),
        Row("steps", 11, "train", "train/loss_nats", 2.0),
        Row("steps", 11, "train", "train/grad_norm", 0.25),
        Row("steps", 12, "train", "train/loss_nats", 1.0),
        Row("steps", 12, "train", "train/grad_norm", 0.125),
        Row("steps", 12, "train", "train/lr", 0.01),
        Row("steps", 12, "train", "train/tokens", 300.0),
        Row("steps", 12, "train", "train/window_seconds", 0.5),
        Row("steps", 12, "train", "train/ponder_cost", 2.5),
    ]


def test_a_window_must_have_as_many_norms_as_losses() -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(rows(window(grad_norm=(0.5,))))


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_evaluation_is_named_by_its_split(split: str) -> None:
    event = EvalDone(
        step=4, tokens=9, split=split, loss_nats=1.5, metrics={"act/ponder_cost": 3.0}
    )
    assert list(rows(event)) == [
        Row("eval", 4, split, f"{split}/loss_nats", 1.5),
        Row("eval", 4, split, "act/ponder_cost", 3.0),
    ]


@pytest.mark.parametrize(
    ("event", "row"),
    [
        (
            Measured(step=7, metrics={"speed/speedup_measured": 1.5}),
            Row("measured", 7, "", "speed/speedup_measured", 1.5),
        ),
        (
            MemoryPeak(step=7, peak_mib=99.5),
            Row("memory", 7, "", "system/peak_memory_mib", 99.5),
        ),
        (Spiked(step=7, ratio=2.5), Row("spike", 7, "train", "stability/spike_ratio", 2.5)),
    ],
)
def test_an_event_of_one_number_is_one_row(event: Event, row: Row) -> None:
    assert list(rows(event)) == [row]


def test_the_end_gives_its_numbers_and_leaves_out_words_flags_and_what_does_not_apply() -> None:
    summary = {
        "best_val_loss_nats": 1.25,
        "final_val_loss_nats": 1.5,
        "steps": 40,
        "causal": True,
        "ponder_cost": None,
        "advice": "train longer",
    }
    event = TrialEnded(step=40, outcome="ok", reason="", summary=summary)
    assert list(rows(event)) == [
        Row("end", 40, "", "best/val_loss_nats", 1.25),
        Row("end", 40, "", "final/val_loss_nats", 1.5),
        Row("end", 40, "", "final/steps", 40.0),
    ]


def test_the_start_has_no_rows() -> None:
    assert list(rows(STARTED)) == []


def test_a_nan_is_told_and_not_dropped() -> None:
    values = [row.value for row in rows(window(loss_nats=(3.0, math.nan, 1.0)))]
    assert sum(math.isnan(value) for value in values) == 1


def test_no_two_rows_of_an_event_have_one_key() -> None:
    for event in (window(), TrialEnded(step=1, outcome="ok", reason="", summary={"steps": 1})):
        keys = [row[:4] for row in rows(event)]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("best_val_ppl", "best/val_ppl"),
        ("final_val_loss_nats", "final/val_loss_nats"),
        ("steps", "final/steps"),
        ("speedup_measured", "final/speedup_measured"),
        ("grad_norm_mean", "final/grad_norm_mean"),
    ],
)
def test_a_column_becomes_a_metric_of_the_group_best_or_final(column: str, name: str) -> None:
    assert metric_name(column) == name


def test_events_are_values() -> None:
    assert window() == window()
    with pytest.raises(FrozenInstanceError):
        STARTED.step = 3  # type: ignore[misc]
