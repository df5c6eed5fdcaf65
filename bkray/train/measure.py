"""What a clock and the operating system see: speed against a rival, peak memory, arithmetic.

Letters: B batch, N sites.
"""

import fcntl
import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.ops.memory import give_freed_memory_back

ROUNDS = 9
"""Paired timings; the median of their ratios is what counts on a shared machine."""

SHORTEST_SECONDS = 0.02
"""Passes shorter than this are repeated within a timing, so that an interruption weighs little."""


class Speed(NamedTuple):
    """Evaluation speed of a model beside a rival's, on the same batch, measured in turn."""

    seconds_per_token: float
    speedup: float | None
    """Rival's time over the model's: above 1 the model is faster. ``None`` without a rival."""


@contextmanager
def machine_lock() -> Iterator[None]:
    """Hold the one right to measure on this machine, across processes; waits for its turn."""
    path = Path(tempfile.gettempdir()) / f"bkray-measure-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def speed(
    model: nn.Module,
    rival: nn.Module | None,
    tokens_BN: Tensor,
    *,
    rounds: int = ROUNDS,
    now: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Time the model, and in turn its rival, in evaluation mode after one warm-up each.

    ``now`` returns seconds.
    """
    timed = [model] if rival is None else [model, rival]
    seconds: list[list[float]] = [[] for _ in timed]
    with machine_lock():
        for one in timed:
            _seconds(one, tokens_BN, 1, now)  # warms up
        shortest = min(_seconds(one, tokens_BN, 1, now) for one in timed)
        repeats = max(1, math.ceil(SHORTEST_SECONDS / shortest))
        for round_ in range(rounds):
            # Turns alternate, so that whoever comes second does not always find a warm cache.
            for i in range(len(timed)) if round_ % 2 else reversed(range(len(timed))):
                seconds[i].append(_seconds(timed[i], tokens_BN, repeats, now))
    ratios = [other / own for own, other in zip(*seconds, strict=True)] if rival else []
    return Speed(
        statistics.median(seconds[0]) / tokens_BN.numel(),
        statistics.median(ratios) if ratios else None,
    )


@torch.no_grad()
def _seconds(model: nn.Module, tokens_BN: Tensor, repeats: int, now: Callable[[], float]) -> float:
    """Return the mean time of one forward pass."""
    was_training = model.training
    model.eval()
    elapsed = stopwatch(tokens_BN.device, now)
    for _ in range(repeats):
        model(tokens_BN)
    seconds = elapsed()
    model.train(was_training)
    return seconds / repeats


def stopwatch(
    device: torch.device, now: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """Start a watch; asked once, it returns the seconds until the device has done its work.

    A GPU's are those between two of its own events; elsewhere ``now`` counts, in seconds.
    """
    wait(device)
    if device.type != "cuda":
        start = now()
        return lambda: now() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):  # an event is recorded on the current device
        begin.record()

    def seconds() -> float:
        with torch.cuda.device(device):
            end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return seconds


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak_memory(device: torch.device) -> None:
    """Start a new peak at what the process holds now, after giving back what is free.

    On a CPU the peak is that of the process: what it holds anyway (its libraries, and what another
    trial left in pieces) counts too.
    """
    give_freed_memory_back()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak since it was forgotten: allocated on a GPU, resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def flops_per_token(model: nn.Module, tokens_BN: Tensor) -> float:
    """Return the floating-point operations of matrix products per token, forward alone.

    Counted on a real pass, so stopped tokens and experts not asked do not count. The scans, which
    are no matrix products, are left out: about ``12 + 8 K`` per site and head.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    was_training = model.training
    model.eval()
    # The counter is blind to the CPU's fused attention; plain products it sees everywhere.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens_BN)
    model.train(was_training)
    return float(counter.get_total_flops()) / tokens_BN.numel()
