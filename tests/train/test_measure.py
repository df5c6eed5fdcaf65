"""Clocks and counters against stand-ins whose cost is known."""

import subprocess
import sys

import pytest
import torch
from tiny import GO, MIXERS, STOP, VOCABULARY, random_tokens, steer, tiny_model
from torch import Tensor, nn

from bkray.train.measure import (
    SHORTEST_SECONDS,
    flops_per_token,
    forget_peak_memory,
    machine_lock,
    peak_memory_mib,
    speed,
)

CPU = torch.device("cpu")
TOKENS = torch.zeros(2, 5, dtype=torch.int64)


class Clock:
    """Time that passes only when a model works."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Worker(nn.Module):
    """Takes so many seconds of a clock, and notes in which mode it was asked, and when."""

    def __init__(self, clock: Clock, seconds: float, slow_at: int | None = None) -> None:
        super().__init__()
        self.clock, self.seconds, self.slow_at = clock, seconds, slow_at
        self.asked: list[tuple[bool, bool, float]] = []

    def forward(self, tokens: Tensor) -> None:
        self.asked.append((self.training, torch.is_grad_enabled(), self.clock.seconds))
        self.clock.seconds += (
            10 * self.seconds if len(self.asked) == self.slow_at else self.seconds
        )


def test_the_speedup_is_the_rivals_time_over_the_models() -> None:
    clock = Clock()
    quick, slow = Worker(clock, 0.02), Worker(clock, 0.05)
    seen = speed(quick, slow, TOKENS, rounds=5, now=clock)
    assert seen.speedup == pytest.approx(2.5)
    assert seen.seconds_per_token == pytest.approx(0.02 / 10)
    assert speed(slow, quick, TOKENS, rounds=5, now=clock).speedup == pytest.approx(0.4)


def test_a_short_pass_is_repeated_until_a_clock_can_see_it() -> None:
    clock = Clock()
    model, rival = Worker(clock, 0.001), Worker(clock, 0.004)
    seen = speed(model, rival, TOKENS, rounds=3, now=clock)
    repeats = round(SHORTEST_SECONDS / 0.001)
    assert len(model.asked) == len(rival.asked)
    assert len(model.asked) - 2 in (3 * repeats, 3 * (repeats + 1))  # 0.02 / 0.001 may round up
    assert seen.seconds_per_token == pytest.approx(0.001 / 10)
    assert seen.speedup == pytest.approx(4.0)


def test_without_a_rival_there_is_no_speedup() -> None:
    clock = Clock()
    assert speed(Worker(clock, 0.1), None, TOKENS, rounds=1, now=clock).speedup is None


def test_one_slow_round_does_not_move_the_speedup() -> None:
    clock = Clock()
    hiccup = Worker(clock, 0.02, slow_at=4)
    seen = speed(hiccup, Worker(clock, 0.02), TOKENS, rounds=5, now=clock)
    assert seen.speedup == pytest.approx(1.0)


def test_both_are_asked_in_turn_in_evaluation_mode_without_gradients_after_a_warm_up() -> None:
    clock = Clock()
    model, rival = Worker(clock, 0.03).train(), Worker(clock, 0.03).eval()
    speed(model, rival, TOKENS, rounds=4, now=clock)
    assert len(model.asked) == len(rival.asked) == 2 + 4  # warm-up, first look, rounds
    assert not any(training or grad for training, grad, _ in model.asked + rival.asked)
    when = sorted([(at, "m") for *_, at in model.asked] + [(at, "r") for *_, at in rival.asked])
    asked = "".join(name for _, name in when[4:])
    assert {asked[i : i + 2] for i in range(0, len(asked), 2)} == {"mr", "rm"}
    assert model.training
    assert not rival.training


def test_the_lock_keeps_a_second_process_out_until_it_is_free() -> None:
    code = (
        "from bkray.train.measure import machine_lock\n"
        "print('ready', flush=True)\n"
        "with machine_lock(): print('in', flush=True)\n"
    )
    with machine_lock():
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=0.5)
    out, _ = other.communicate(timeout=30)
    assert out == "in\n"
    assert other.returncode == 0


def test_the_lock_is_free_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), machine_lock():
        raise ZeroDivisionError
    with machine_lock():
        pass


def test_peak_memory_sees_an_allocation_that_is_gone_and_forgets_it_when_told() -> None:
    forget_peak_memory(CPU)
    before = peak_memory_mib(CPU)
    assert before > 10, "this process and torch alone are larger"
    block = torch.ones(150 * 2**20, dtype=torch.uint8)
    del block
    assert peak_memory_mib(CPU) >= before + 140
    forget_peak_memory(CPU)
    assert peak_memory_mib(CPU) <= before + 75


def weights_in_products(model: nn.Module) -> int:
    """Every matrix that is no table meets every token once: a multiplication and an addition.

    Taps of a convolution are used channel by channel, in no product, as a scan is.
    """
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2
        and not name.startswith(("embedding", "positions", "depth"))
        and not name.endswith("taps")
    )


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flops_of_a_dense_model_are_those_counted_by_hand(mixer: str, dtype: torch.dtype) -> None:
    model, n_sites = tiny_model(mixer, dtype=dtype), 16
    by_hand = 2.0 * weights_in_products(model)
    if mixer == "attention":  # scores and values: each query meets each of N keys twice
        by_hand += len(model.blocks) * 2 * 2 * n_sites * 16
    assert flops_per_token(model, random_tokens(3, n_sites)) == by_hand


def test_the_count_by_hand_is_right_for_one_small_model() -> None:
    model = tiny_model("linear_recurrence", n_layers=1, d_model=4, d_hidden=6)
    per_token = 4 * 4 * 4 + 2 * 4 * 6 + 4 * VOCABULARY  # mixer, feed-forward, head
    assert flops_per_token(model, random_tokens(1, 8)) == 2.0 * per_token


def test_experts_that_are_not_asked_and_tokens_that_stopped_cost_nothing() -> None:
    one, two, all_four = (
        flops_per_token(tiny_model(n_experts=4, top_k=k), random_tokens(2, 16)) for k in (1, 2, 4)
    )
    expert = 2.0 * 3 * (2 * 16 * 24)  # three layers
    assert two - one == expert
    assert all_four - one == 3 * expert
    act = tiny_model(depth="act")
    steer(act)
    stopped, going = (flops_per_token(act, torch.full((2, 16), t)) for t in (STOP, GO))
    block = 2.0 * (weights_in_products(act.blocks[0]))
    halting = 2.0 * (16 * 8 + 8)
    assert going - stopped == 2 * block + halting


def test_counting_leaves_the_model_as_it_was() -> None:
    model = tiny_model(dropout=0.5).train()
    state = torch.get_rng_state()
    flops_per_token(model, random_tokens(1, 8))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
