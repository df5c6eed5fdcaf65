"""Speed of the causal resolvent, forward and backward, against a copy and against the plain loop.

    python -m benchmarks.scan

A rate counts site-channels: B rows times N sites times H heads, K = 1 value channel each, float32,
through the public function and autograd. Each round times every line once, one after the other;
a figure is the median over the rounds, a ratio the median of the ratios within each round.
Eight batches of B=8 go through forward in turn and then backward in reverse, as layers do, so that
they touch as many bytes as the one row of B=1, and neither is served by the cache alone.
The copy is ``copy_`` of 256 MiB of float32 on the same threads, bytes read plus bytes written.
The plain loop is the reference form: complex numbers, ``unbind`` over sites, autograd.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bkray.ops.memory import keep_freed_memory
from bkray.ops.tridiagonal import causal_resolvent

ROUNDS = 7
BYTES_PER_SITE_CHANNEL = 40
"""What a forward and a backward must move at least, when what can be recomputed is."""
N_HEADS = 64
N_BATCHES = 8


def main() -> None:
    """Print one line per figure; a bar is what the figure must reach."""
    keep_freed_memory()  # as every trial does; else B=1 times the kernel's page clearing
    torch.manual_seed(0)
    batches = [draw(8, 2048) for _ in range(N_BATCHES)]
    long_row = [draw(1, 131_072)]
    lines: dict[str, Callable[[], float]] = {
        "copy": copy_bandwidth,
        "B=8": lambda: rate(batches, "cpu"),
        "B=8 forward": lambda: rate(batches, "cpu", backward=False),
        "B=8 cached": lambda: rate(batches[:1] * N_BATCHES, "cpu"),
        "B=1": lambda: rate(long_row, "cpu"),
        "B=1 forward": lambda: rate(long_row, "cpu", backward=False),
        "torch": lambda: rate(batches[:1], "torch"),
        "plain": lambda: rate(batches[:1], "reference"),
    }
    for line in lines.values():
        line()  # compile, and touch the memory once
    rounds = [{name: line() for name, line in lines.items()} for _ in range(ROUNDS)]

    def median(over: str, under: str, factor: float = 1.0) -> float:
        return factor * statistics.median(each[over] / each[under] for each in rounds)

    print(f"scan: {N_HEADS} heads, 1 value channel, float32, {torch.get_num_threads()} threads")
    for name in lines:
        unit = "bytes/s" if name == "copy" else "site-channels/s"
        print(f"{name:12s} {statistics.median(each[name] for each in rounds):10.2e} {unit}")
    share = median("B=8", "copy", BYTES_PER_SITE_CHANNEL)
    print(f"B=8 at {BYTES_PER_SITE_CHANNEL} bytes over copy  {share:8.2f}   bar 0.25")
    print(f"B=8 over plain loop       {median('B=8', 'plain'):8.1f}   bar 30")
    print(f"B=8 over torch form       {median('B=8', 'torch'):8.1f}")
    print(f"B=1 over B=8              {median('B=1', 'B=8'):8.2f}   bar 0.7")


def draw(B: int, N: int) -> list[Tensor]:
    """h, x, energy, eta as a mixer starts with, and the gradient of the features."""
    h_BNH, x_BNKH = torch.randn(B, N, N_HEADS) - 2, torch.randn(B, N, 1, N_HEADS)
    energy_H = torch.linspace(-3.5, -0.5, N_HEADS)[torch.randperm(N_HEADS)]
    eta_H = torch.nn.functional.softplus(torch.linspace(-4, 0.55, N_HEADS))
    leaves = [t.requires_grad_() for t in (h_BNH, x_BNKH, energy_H, eta_H)]
    return [*leaves, torch.randn(B, N, 4, N_HEADS)]


def rate(batches: list[list[Tensor]], form: str, *, backward: bool = True) -> float:
    """Site-channels per second."""
    begin = time.perf_counter()
    features = [causal_resolvent(*batch[:4], form=form) for batch in batches]
    if backward:
        for batch, features_BNFH in zip(reversed(batches), reversed(features), strict=True):
            torch.autograd.grad(features_BNFH, batch[:4], batch[4])
    seconds = time.perf_counter() - begin
    return sum(batch[0].numel() for batch in batches) / seconds


def copy_bandwidth() -> float:
    """Bytes read and written per second."""
    source = torch.ones(64 << 20)
    target = source.clone()
    begin = time.perf_counter()
    target.copy_(source)
    return 2 * source.nbytes / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
