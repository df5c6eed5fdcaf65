"""Times by length: in turn, with a clock of their own, and for every mixer there is."""

from collections.abc import Callable

import pytest
import torch
from tiny import MIXERS, tiny_config

from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.train import speeds as of_speeds
from bkray.train.measure import ROUNDS, SHORTEST_SECONDS
from bkray.train.speeds import KINDS, speeds

CPU = torch.device("cpu")
OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)


class Clock:
    """Time that passes only when a pass works; it notes who did."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.worked: list[str] = []

    def __call__(self) -> float:
        return self.seconds

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def one() -> None:
            self.worked.append(name)
            self.seconds += seconds

        return one


def test_both_are_timed_in_turn_after_a_first_pass() -> None:
    clock = Clock()
    passes = [clock.work("own", 0.2), clock.work("other", 0.1)]
    seen = of_speeds._in_turn(passes, 100, CPU, clock)
    assert seen["over_reference"] == pytest.approx(2.0)
    assert seen["microseconds_per_token"] == pytest.approx(2000.0)
    assert seen["reference_microseconds_per_token"] == pytest.approx(1000.0)
    assert len(clock.worked) == 2 + 2 * ROUNDS
    assert clock.worked[2:6] == ["other", "own", "own", "other"]


def test_short_passes_are_repeated_within_a_timing() -> None:
    clock = Clock()
    passes = [clock.work("own", 0.002), clock.work("other", 0.001)]
    assert of_speeds._in_turn(passes, 1, CPU, clock)["over_reference"] == pytest.approx(2.0)
    repeats = round(SHORTEST_SECONDS / 0.001)
    assert len(clock.worked) == 2 + 2 * ROUNDS * repeats


def test_a_long_pass_has_three_rounds_behind_a_cold_one() -> None:
    clock = Clock()
    slow = iter([19.0, 6.0, 8.0, 7.0])
    passes = [lambda: clock.work("own", next(slow))(), clock.work("other", 2.0)]
    seen = of_speeds._in_turn(passes, 1, CPU, clock)
    assert clock.worked[:4] == ["own", "other", "other", "own"] and len(clock.worked) == 8
    told = [seen[f"over_reference{name}"] for name in ("_least", "", "_most")]
    assert told == pytest.approx([3.0, 3.5, 4.0])
    assert seen["rounds"] == 3


def test_what_takes_very_long_has_one_round_behind_a_cold_one() -> None:
    clock = Clock()
    slow = iter([90.0, 60.0])
    passes = [lambda: clock.work("own", next(slow))(), clock.work("other", 2.0)]
    seen = of_speeds._in_turn(passes, 1, CPU, clock)
    assert seen["over_reference"] == pytest.approx(30.0) and seen["rounds"] == 1


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_is_timed_at_every_length(mixer: str) -> None:
    config = tiny_config(mixer, d_hidden=400, speed_lengths="64,128", speed_reference_mixer="bk")
    torch.manual_seed(0)
    seen = speeds(config, 11, CPU, OFF)
    assert {name.split("_")[0] for name in seen} == {
        f"speed/seq{n}/{kind}" for n in (64, 128) for kind in KINDS
    }
    assert len(seen) == 2 * len(KINDS) * 8
    assert all(value > 0 for name, value in seen.items() if "memory" not in name)


def test_memory_is_what_a_pass_takes() -> None:
    held: list[torch.Tensor] = []

    def allocate() -> None:
        held[:] = [torch.ones(8 * 2**20)]  # 32 MiB
        held.clear()

    seen = of_speeds._in_turn([allocate, lambda: None], 1, CPU)
    assert 30 < seen["memory_mib"] < 40
    assert seen["reference_memory_mib"] < 2


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"speed_lengths": "64", "depth": "act"}, r"needs a built-in one with model\.depth=dense"),
        ({"speed_lengths": "32"}, "must be at least 64 tokens each, got 32"),
        ({"speed_lengths": "64,"}, r"train\.speed_lengths"),
    ],
)
def test_what_cannot_be_timed_is_refused(knobs: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_config("linear_recurrence", **knobs)


def test_a_single_length_is_a_number_on_the_command_line() -> None:
    config: TrialConfig = tiny_config("linear_recurrence", speed_lengths=64)
    assert config.train.speed_lengths == "64"
