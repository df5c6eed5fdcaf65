"""Speed of the selective scan, and of one mixer of each family over the same sequence.

    python -m benchmarks.mamba [--sites 2048] [--rounds 7]

One step is a forward and a backward in float32. Each round times every line once, one after the
other; a figure is the median over the rounds, a ratio the median of the ratios within each round.
The scan has 128 channels of 16 states, those of a Mamba mixer of width 64; its bytes are what a
step must move at least when the states are computed again: x, dt and dy read, dt and x once more,
y, dx and ddt written. The mixers have width 64 and what the config gives them by default.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from benchmarks.scan import copy_bandwidth
from bkray.config import ModelConfig
from bkray.nn.build import mixer
from bkray.ops.memory import keep_freed_memory
from bkray.ops.selective_scan import selective_scan

FAMILIES = ("bk", "mamba", "linear_recurrence", "attention")
N_ROWS, D_MODEL, N_CHANNELS, N_STATES = 4, 64, 128, 16
BYTES_PER_SITE_CHANNEL = 32


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    rounds = timed(lines(arguments.sites), arguments.rounds)
    print(f"{N_ROWS} rows of {arguments.sites} sites, {torch.get_num_threads()} threads")
    print(f"{'copy':20s} {statistics.median(e['copy'] for e in rounds):9.2e} bytes/s")
    for name in (name for name in rounds[0] if name != "copy"):
        print(f"{name:20s} {1e3 * statistics.median(each[name] for each in rounds):9.2f} ms")
    numbers = N_ROWS * arguments.sites * N_CHANNELS
    share = statistics.median(
        BYTES_PER_SITE_CHANNEL * numbers / e["scan"] / e["copy"] for e in rounds
    )
    print(f"{'scan over copy':30s} {share:8.3f} of its bytes per second")
    for over, under in (
        ("scan torch", "scan"),
        ("scan backward", "scan forward"),
        ("scan", "mamba"),
        *((family, "bk") for family in FAMILIES[1:]),
    ):
        ratio = statistics.median(each[over] / each[under] for each in rounds)
        print(f"{over + ' over ' + under:30s} {ratio:8.3f}")


def lines(n_sites: int) -> dict[str, Callable[[], Sequence[float]]]:
    """Return what is timed, by name: seconds forward and backward."""
    x = torch.randn(N_ROWS, n_sites, D_MODEL, requires_grad=True)
    position = torch.arange(n_sites).expand(N_ROWS, -1)
    inputs = draw(n_sites)
    mixers = {family: mixer(ModelConfig(mixer=family)) for family in FAMILIES}
    return {
        "scan": lambda: step(lambda *given: selective_scan(*given)[0], inputs),
        "scan torch": lambda: step(lambda *given: selective_scan(*given, form="torch")[0], inputs),
        **{
            name: lambda made=made: step(  # type: ignore[misc]
                lambda hidden, *_: made(hidden, position), [x, *made.parameters()]
            )
            for name, made in mixers.items()
        },
    }


def draw(n_sites: int) -> list[Tensor]:
    """Return x, dt, rate, into, out and skip as a mixer starts with."""
    dt = softplus(torch.randn(N_ROWS, n_sites, N_CHANNELS) - 4)
    rate = -torch.arange(1.0, N_STATES + 1)[:, None].repeat(1, N_CHANNELS)
    matrices = (torch.randn(N_ROWS, n_sites, N_STATES) for _ in range(2))
    drawn = [torch.randn_like(dt), dt, rate, *matrices, torch.ones(N_CHANNELS)]
    return [t.requires_grad_() for t in drawn]


def step(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[float, float]:
    """Return the seconds of a forward and of a backward."""
    begin = time.perf_counter()
    said = run(*inputs)
    between = time.perf_counter()
    torch.autograd.grad(said, inputs, torch.ones_like(said))
    return between - begin, time.perf_counter() - between


def timed(
    steps: dict[str, Callable[[], Sequence[float]]], n_rounds: int
) -> list[dict[str, float]]:
    """Return the seconds of each line in each round, and the copy's bytes per second."""
    for one in steps.values():
        one()  # compile, and touch the memory once
    rounds = []
    for _ in range(n_rounds):
        both = {name: one() for name, one in steps.items()}
        seconds = {name: sum(parts) for name, parts in both.items()}
        seconds["scan forward"], seconds["scan backward"] = both["scan"]
        rounds.append({**seconds, "copy": copy_bandwidth()})
    return rounds


if __name__ == "__main__":
    main()
