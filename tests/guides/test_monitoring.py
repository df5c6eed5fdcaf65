"""The guides' counters of spikes and gradient norms."""

import inspect
import json
import math
import random
import statistics
from typing import Any

import pytest
import torch

from bkray import stability
from bkray.errors import ConfigError
from bkray.guides import GradientNormTracker, LossSpikeDetector

EMPTY = inspect.Parameter.empty


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (LossSpikeDetector, {"window_size": 10}),
        (LossSpikeDetector.add_loss, {"self": EMPTY, "loss": EMPTY}),
        (LossSpikeDetector.get_spike_count, {"self": EMPTY}),
        (GradientNormTracker, {}),
        (GradientNormTracker.add_norm, {"self": EMPTY, "seq_len": EMPTY, "grad_norm": EMPTY}),
        (GradientNormTracker.get_statistics, {"self": EMPTY, "seq_len": EMPTY}),
    ],
)
def test_arguments_and_defaults_are_those_of_the_guides(
    function: Any, expected: dict[str, Any]
) -> None:
    parameters = inspect.signature(function).parameters
    assert {name: p.default for name, p in parameters.items()} == expected


def test_the_guides_and_the_judge_share_one_implementation() -> None:
    assert LossSpikeDetector is stability.LossSpikeDetector
    assert GradientNormTracker is stability.GradientNormTracker


def test_more_than_twice_the_loss_before_is_a_spike() -> None:
    detector = LossSpikeDetector()
    said = [detector.add_loss(loss) for loss in (2.0, 1.0, 2.0, 4.5, 9.0, 1.0)]
    ratios = [1.0, 0.5, 2.0, 2.25, 2.0, 1.0 / 9.0]
    assert said == list(zip([False, False, False, True, False, False], ratios, strict=True))
    assert detector.get_spike_count() == 1


def test_a_spike_is_counted_for_good_and_the_window_keeps_the_last_losses() -> None:
    detector = LossSpikeDetector(window_size=3)
    for loss in (1.0, 5.0, 4.0, 4.0, 3.0):
        detector.add_loss(loss)
    assert list(detector.losses) == [4.0, 4.0, 3.0]
    assert detector.get_spike_count() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_a_spike_and_the_next_one_skips_it(value: float) -> None:
    detector = LossSpikeDetector()
    detector.add_loss(1.0)
    is_spike, ratio = detector.add_loss(value)
    assert is_spike
    assert ratio == value or (math.isnan(ratio) and math.isnan(value))
    assert detector.add_loss(1.5) == (False, 1.5)
    assert detector.get_spike_count() == 1


@pytest.mark.parametrize(("window_size", "expected"), [(2, (False, 1.0)), (3, (True, 5.0))])
def test_the_window_is_how_far_back_the_loss_before_may_lie(
    window_size: int, expected: tuple[bool, float]
) -> None:
    detector = LossSpikeDetector(window_size)
    for loss in (1.0, math.nan, math.nan):
        detector.add_loss(loss)
    assert detector.add_loss(5.0) == expected


@pytest.mark.parametrize(
    ("before", "loss", "expected"),
    [
        (0.0, 0.5, (True, math.inf)),
        (0.0, 0.0, (False, 1.0)),
        (0.0, -1.0, (False, -math.inf)),
        (1.0, -3.0, (False, -3.0)),
    ],
)
def test_zero_and_negative_losses(
    before: float, loss: float, expected: tuple[bool, float]
) -> None:
    detector = LossSpikeDetector()
    detector.add_loss(before)
    assert detector.add_loss(loss) == expected


def test_a_negative_loss_cannot_be_doubled() -> None:
    detector = LossSpikeDetector()
    detector.add_loss(-1.0)
    is_spike, ratio = detector.add_loss(-1.5)
    assert not is_spike
    assert math.isnan(ratio)


def test_a_window_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="window_size must be at least 1, got 0"):
        LossSpikeDetector(window_size=0)


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_statistics_are_those_of_all_norms_of_a_length(offset: float) -> None:
    draw = random.Random(0)
    norms = {n: [offset + draw.lognormvariate(0, 1) for _ in range(500)] for n in (128, 512)}
    tracker = GradientNormTracker()
    for pair in zip(*norms.values(), strict=True):
        for seq_len, norm in zip(norms, pair, strict=True):
            tracker.add_norm(seq_len, norm)
    for seq_len, values in norms.items():
        assert tracker.get_statistics(seq_len) == pytest.approx(
            {
                "mean": statistics.fmean(values),
                "std": statistics.pstdev(values),
                "min": min(values),
                "max": max(values),
            },
            rel=1e-9 if offset == 0 else 1e-6,
        )
    assert tracker.lengths == [128, 512]


def test_norms_that_are_not_finite_are_counted_apart() -> None:
    tracker = GradientNormTracker()
    for norm in (math.nan, 1.0, math.inf, 3.0, -math.inf):
        tracker.add_norm(64, norm)
    assert tracker.get_statistics(64) == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}
    assert tracker.nonfinite_count(64) == 3


def test_without_a_finite_norm_there_are_no_statistics() -> None:
    tracker = GradientNormTracker()
    tracker.add_norm(64, math.nan)
    for seq_len, n_broken in ((64, 1), (128, 0)):
        assert all(map(math.isnan, tracker.get_statistics(seq_len).values()))
        assert tracker.nonfinite_count(seq_len) == n_broken
    assert tracker.lengths == [64]


def test_memory_does_not_grow_with_the_steps() -> None:
    tracker = GradientNormTracker()
    tracker.add_norm(64, 1.0)
    size = len(json.dumps(tracker.state()))
    for _ in range(1000):
        tracker.add_norm(64, 1.0)
    assert len(json.dumps(tracker.state())) <= size + 3


def test_state_goes_through_a_checkpoint_and_through_json(tmp_path: Any) -> None:
    tracker, copies = GradientNormTracker(), [GradientNormTracker(), GradientNormTracker()]
    for norm in (1.0, 2.0, math.nan):
        tracker.add_norm(64, norm)
    tracker.add_norm(32, math.inf)
    torch.save(tracker.state(), tmp_path / "state.pt")
    copies[0].restore(torch.load(tmp_path / "state.pt", weights_only=True))
    copies[1].restore(json.loads(json.dumps(tracker.state())))
    for copy in copies:
        assert copy.state() == tracker.state()
        copy.add_norm(64, 6.0)
        assert copy.get_statistics(64) == pytest.approx(
            {"mean": 3.0, "std": math.sqrt(14 / 3), "min": 1.0, "max": 6.0}
        )
    assert tracker.get_statistics(64)["max"] == 2.0
