"""What only a GPU can show; elsewhere all of this is skipped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import in_team
from tiny import MIXERS, VOCABULARY, random_tokens, tiny_model
from torch import Tensor, nn
from trials import short_config

from bkray.cluster.carriers import Job, attempt
from bkray.cluster.tuner import PARTS
from bkray.config import TrialConfig
from bkray.data.shards import prepare
from bkray.events import TrialEnded
from bkray.ops.tridiagonal import causal_resolvent
from bkray.overrides import flatten
from bkray.train.measure import speed, stopwatch
from bkray.train.run import Run, next_guard, take_step
from bkray.train.team import ALONE, Team
from bkray.train.window import train_window
from bkray.trial import compose, identify, warm_up

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


def on_gpu(text: Path, mixer: str = "bk", **knobs: Any) -> TrialConfig:
    return short_config(text, mixer, **{"device": "cuda", **knobs})


def a_run(config: TrialConfig, team: Team = ALONE) -> Run:
    run = compose(config, prepare(config.data, config.model.n_seq), None, team)
    warm_up(run)
    return run


def resolvents(form: str, inputs: list[Tensor]) -> list[Tensor]:
    """Features and gradients, on the CPU."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    features = causal_resolvent(*leaves, form=form)
    weights = torch.linspace(-1, 1, features.numel()).view_as(features).to(features)
    grads = torch.autograd.grad(features, leaves, weights)
    return [t.detach().cpu().double() for t in (features, *grads)]


@pytest.mark.parametrize("shape", [(8, 2048, 1, 64), (1, 32_768, 6, 16), (3, 5000, 2, 10)])
def test_the_forms_agree_at_the_sizes_they_are_for(shape: tuple[int, int, int, int]) -> None:
    B, N, K, H = shape
    torch.manual_seed(0)
    inputs = [torch.randn(B, N, H) - 2, torch.randn(B, N, K, H)]
    inputs += [torch.linspace(-3.5, -0.5, H), torch.linspace(0.02, 1, H)]
    exact = resolvents("cpu", [t.double() for t in inputs])

    def errors(got: list[Tensor]) -> list[float]:
        return [
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, exact, strict=True)
        ]

    # Of a million sites some are near a resonance, where any float32 form loses digits.
    plain = errors(resolvents("cpu", inputs))
    for form in ("triton", "torch"):
        seen = errors(resolvents(form, [t.to(CUDA) for t in inputs]))
        assert seen[0] <= max(1e-5, 4 * plain[0]), (form, seen, plain)
        assert max(seen[1:]) <= max(1e-4, 4 * max(plain[1:])), (form, seen, plain)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_run_and_watches_look_at_the_device_of_their_tensors() -> None:
    other = torch.device("cuda", 1)
    inputs = [torch.randn(1, 200, 4), torch.randn(1, 200, 1, 4), torch.zeros(4), torch.ones(4)]
    expected = resolvents("cpu", inputs)
    elapsed = stopwatch(other)
    got = resolvents("triton", [t.to(other) for t in inputs])
    assert torch.cuda.current_device() == 0 and elapsed() > 0
    for a, b in zip(got, expected, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) <= 1e-4


def test_auto_is_triton() -> None:
    inputs = [torch.randn(1, 40, 4), torch.randn(1, 40, 1, 4), torch.zeros(4), torch.ones(4)]
    given = [t.to(CUDA) for t in inputs]
    assert torch.equal(causal_resolvent(*given), causal_resolvent(*given, form="triton"))


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_future_is_hidden_in_bf16(mixer: str) -> None:
    model = tiny_model(mixer, dtype=torch.float32).to(CUDA).eval()
    tokens_BN = random_tokens(2, 16).to(CUDA)
    moved_BN = tokens_BN.clone()
    moved_BN[:, 9] = (moved_BN[:, 9] + 1) % VOCABULARY
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        base, moved = model(tokens_BN).logits_BNV, model(moved_BN).logits_BNV
    assert torch.equal(base[:, :9], moved[:, :9])
    assert (base[:, 9:] != moved[:, 9:]).any()


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_host_waits_for_nothing_within_a_window(mixer: str, text: Path) -> None:
    run = a_run(on_gpu(text, mixer, precision="bf16"))
    train_window(run)  # the optimizer makes its state, and kernels are compiled
    guard = next_guard(run)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(17, 20):
            take_step(run, step, guard)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bf16_trains_as_float32_does(text: Path) -> None:
    losses = [
        train_window(a_run(on_gpu(text, precision=precision))).loss_nats
        for precision in ("float32", "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def _window(team: Team, config: TrialConfig) -> tuple[float, ...]:
    return train_window(a_run(config, team)).loss_nats


def test_two_processes_on_one_gpu_train_as_one_does(text: Path, tmp_path: Path) -> None:
    config = on_gpu(text)
    first, second = in_team(2, tmp_path, _window, config)
    assert first == second == pytest.approx(_window(ALONE, config), rel=1e-4)


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**29 / torch.cuda.mem_get_info()[1])
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_memory_that_runs_out_is_an_outcome_and_the_next_trial_trains(
    text: Path, tmp_path: Path
) -> None:
    wide = {"d_model": 1024, "n_heads": 64, "n_values": 16, "d_hidden": 4096}
    wide |= {"batch_size": 64, "n_seq": 128}
    for name, knobs, outcome in (("large", wide, "oom"), ("small", {"train.steps": 20}, "ok")):
        config = on_gpu(text, **knobs)
        trial_id, data_hash = identify(config)
        folder = tmp_path / name
        folder.mkdir()
        job = Job(
            number=0,
            trial_id=trial_id,
            data_hash=data_hash,
            sweep="",
            overrides=flatten(config),
            folder=folder,
            sweep_folder=tmp_path,
            deadline=None,
        )
        *_, ended = attempt(job, PARTS)
        assert isinstance(ended, TrialEnded)
        assert ended.outcome == outcome, ended.reason


class Sleeper(nn.Module):
    """Keeps the device busy for so many cycles, and the host for none."""

    def __init__(self, cycles: int) -> None:
        super().__init__()
        self.cycles = cycles

    def forward(self, tokens_BN: Tensor) -> None:
        torch.cuda._sleep(self.cycles)


def no_clock() -> float:
    raise AssertionError("the host's clock was asked")


def test_speedups_are_those_of_the_devices_events() -> None:
    tokens_BN = torch.zeros(1, 4, dtype=torch.int64, device=CUDA)
    seen = speed(Sleeper(10_000_000), Sleeper(30_000_000), tokens_BN, rounds=5, now=no_clock)
    assert seen.speedup == pytest.approx(3, rel=0.05)


def test_a_stopwatch_waits_for_the_device() -> None:
    elapsed = stopwatch(CUDA, no_clock)
    torch.cuda._sleep(200_000_000)
    assert elapsed() > 0.05
