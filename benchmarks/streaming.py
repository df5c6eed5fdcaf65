"""What a stream and a training step in chunks cost in memory and time, by length.

    python -m benchmarks.streaming

Every row is a process of its own, so that its peak is its own. A stream is to keep its memory
from 32,768 to 1,048,576 tokens; a step in chunks holds the activations of one chunk, the tokens
and what is carried over each border.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.judging import paired
from benchmarks.length import held
from bkray.nn.build import language_model
from bkray.nn.lm import LanguageModel
from bkray.ops.memory import keep_freed_memory
from bkray.overrides import build
from bkray.train import measure
from bkray.train.guard import Guard
from bkray.train.optim import adamw
from bkray.train.step import TokenTally, optimizer_step
from bkray.train.streaming import OFF, stream_loss
from bkray.train.watch import Blocks
from bkray.trial import use_threads

VOCABULARY = 256
SMALL = {"model.d_model": 32, "model.n_layers": 2, "model.n_heads": 8, "model.n_values": 4}
STREAMS = ((32_768, 4096), (1_048_576, 4096))
COMPARED = (2_048, 131_072, 1024, 5)
MOST_TIME = 1.25
"""The bar."""
STEPS = ((2_048, 1024), (8_192, 1024), (32_768, 1024), (131_072, 1024), (8_192, None))


def main() -> None:
    """Print both tables; one row of them as JSON where a child is asked for it."""
    if len(sys.argv) > 1:
        kind, sites, held = sys.argv[1:]
        work = stream if kind == "stream" else step
        print(json.dumps(work(int(sites), None if held == "None" else int(held))))
        return
    for kind, rows in (("stream", STREAMS), ("step", STEPS)):
        print(
            f"{kind:>7} {'tokens':>9} {'chunk':>6} {'peak MiB':>9} "
            f"{'above idle':>10} {'us/token':>9}"
        )
        for n_sites, chunk in rows:
            said = in_a_process(kind, n_sites, chunk)
            print(
                f"{'':>7} {n_sites:>9,} {chunk or 'whole':>6} {said['peak']:>9.1f} "
                f"{said['peak'] - said['idle']:>10.1f} {1e6 * said['seconds'] / n_sites:>9.2f}",
                flush=True,
            )

    print(time_per_token(*COMPARED))


def time_per_token(short: int, long: int, chunk: int, n_pairs: int) -> str:
    """Return how much longer a token takes in a long row than in as many tokens of short ones."""
    use_threads(1)
    keep_freed_memory()
    take = stepper(chunk)
    rows = torch.randint(VOCABULARY, (1, long + 1)), torch.randint(VOCABULARY, (1, short + 1))
    take(rows[1])

    def many() -> None:
        for _ in range(long // short):
            take(rows[1])

    ratios = sorted(one / other for one, other in paired(lambda: take(rows[0]), many, n_pairs))
    middle = statistics.median(ratios)
    return (
        f"time per token at {long:,} over that at {short:,}, both in chunks of {chunk}: "
        f"{middle:.3f} ({ratios[0]:.3f}..{ratios[-1]:.3f}); the bar is {MOST_TIME}: "
        f"{held(middle <= MOST_TIME)}"
    )


def in_a_process(kind: str, n_sites: int, chunk: int | None) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.streaming", kind, str(n_sites), str(chunk)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    said: dict[str, float] = json.loads(told)
    return said


def model() -> LanguageModel:
    torch.manual_seed(0)
    return language_model(build(SMALL).model, VOCABULARY)


def stream(n_tokens: int, chunk: int | None) -> dict[str, float]:
    """Score a stream of random bytes; the first, short one compiles the scan."""
    use_threads(1)
    keep_freed_memory()
    assert chunk is not None
    said, text = model(), np.random.default_rng(0).integers(VOCABULARY, size=100_000)
    stream_loss(said, text, 64, chunk=64)
    idle = measure.peak_memory_mib(torch.device("cpu"))
    scored = stream_loss(said, text, n_tokens, chunk=chunk)
    return {"idle": idle, "peak": scored.peak_memory_mib, "seconds": scored.seconds}


def step(n_sites: int, chunk: int | None) -> dict[str, float]:
    """Take two steps on one row of so many sites; the first one compiles the scan."""
    use_threads(1)
    keep_freed_memory()
    take, device = stepper(chunk), torch.device("cpu")
    tokens_BN = torch.randint(VOCABULARY, (1, n_sites + 1))
    take(tokens_BN[:, :65])
    measure.forget_peak_memory(device)
    idle = measure.peak_memory_mib(device)
    start = time.perf_counter()
    take(tokens_BN)
    return {
        "idle": idle,
        "peak": measure.peak_memory_mib(device),
        "seconds": time.perf_counter() - start,
    }


def stepper(chunk: int | None) -> Callable[[torch.Tensor], None]:
    """Return what takes one optimizer step on rows of tokens."""
    trained, device = model(), torch.device("cpu")
    optimizer = adamw(trained, build(SMALL).optimizer)

    def take(tokens: torch.Tensor) -> None:
        optimizer_step(
            trained,
            optimizer,
            [(tokens[:, :-1], tokens[:, 1:])],
            TokenTally(build(SMALL).model, None, chunk),
            clip_norm=1.0,
            autocast=OFF,
            blocks=Blocks(trained),
            guard=Guard(device, None, 0),
        )

    return take


if __name__ == "__main__":
    main()
