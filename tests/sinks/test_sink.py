"""Tee hands on, InMemory keeps, and labels read well."""

import dataclasses
from typing import Any

import pytest

from bkray.events import Event, MemoryPeak, TrialStarted
from bkray.sinks.sink import InMemory, Tee, trial_label

PEAK = MemoryPeak(step=1, peak_mib=2.0)
SWEPT = ("model.act_threshold", "model.act_lambda")
STARTED = TrialStarted(
    trial_id="0123456789ab",
    sweep="act",
    arm="",
    seed=3,
    attempt=1,
    config={"model.act_threshold": 0.95, "model.act_lambda": 0.01, "optimizer.lr": 0.003},
    n_params=10,
    causal=True,
    data_hash="d",
)


class Broken:
    """Fails with the given error at every event and at close."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, event: Event) -> None:
        raise self._error

    def close(self) -> None:
        raise self._error


def test_every_sink_gets_the_event_before_the_error_of_one_comes_out() -> None:
    before, after = InMemory(), InMemory()
    tee = Tee(before, Broken(OSError("disk full")), after)
    with pytest.raises(OSError, match="disk full"):
        tee(PEAK)
    assert before.events == after.events == [PEAK]


def test_errors_of_several_sinks_come_out_together() -> None:
    tee = Tee(Broken(OSError("disk full")), InMemory(), Broken(ValueError("odd")))
    with pytest.raises(ExceptionGroup) as caught:
        tee.close()
    assert [str(error) for error in caught.value.exceptions] == ["disk full", "odd"]


@pytest.mark.parametrize(
    ("swept", "changes", "label"),
    [
        (SWEPT, {}, "threshold=0.95 lambda=0.01 seed=3"),
        (SWEPT[:1], {}, "act_threshold=0.95 seed=3"),
        ((*SWEPT, "optimizer.lr"), {}, "act_threshold=0.95 act_lambda=0.01 lr=0.003 seed=3"),
        (
            ("a.width", "b.width"),
            {"config": {"a.width": 1, "b.width": 2}},
            "a.width=1 b.width=2 seed=3",
        ),
        (SWEPT, {"arm": "dense-2"}, "dense-2 seed=3"),
        ((), {}, "act seed=3"),
        (("model.n_heads",), {}, "act seed=3"),
    ],
)
def test_a_label_says_what_tells_a_trial_from_its_neighbours(
    swept: tuple[str, ...], changes: dict[str, Any], label: str
) -> None:
    assert trial_label(dataclasses.replace(STARTED, **changes), swept) == label
