"""Training of whole language models by size and length: tokens per second and peak memory.

    python -m benchmarks.gpu.models [--out FOLDER] [--tiny]

A step is the trial's own: bf16 autocast, fused AdamW, norms by block and the guard, on random
bytes from the host, pinned. It has 131,072 tokens at every length, so that lengths differ in
nothing else, and holds 32,768 of them at once: rows in rounds, or sites of the longest row
(``train.chunk``, which runs forward almost twice). That row is timed whole too, where it fits.
``time over 8192`` is the time of a token over that in rows of 8,192; of ours whole at 131,072 it
is to be at most 1.1.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.gpu.figure import Figure, Row, main, median_seconds, peak_gib
from bkray.nn.build import language_model
from bkray.overrides import build
from bkray.train.guard import Guard
from bkray.train.optim import adamw
from bkray.train.step import TokenTally, optimizer_step
from bkray.train.watch import Blocks


class Ladder(NamedTuple):
    """Lengths in the order they are timed in, the compared one first; the longest is a step."""

    sites: tuple[int, ...]
    held: int
    """Tokens at once."""


SIZES = {"10M": (320, 8), "50M": (640, 9), "150M": (1024, 11)}
"""Width and layers."""
TINY_SIZES = {"tiny": (16, 2)}
LADDER, TINY_LADDER = Ladder((8192, 131_072, 2048, 32_768), 32_768), Ladder((16, 64), 32)
VOCABULARY = 256
FAMILIES = ("bk", "attention")
MOST_OVER = 1.1


def measure_all(figure: Figure) -> None:
    """One row per size, family and length; BK first, for the time may be short."""
    ladder = TINY_LADDER if figure.tiny else LADDER
    for family in FAMILIES:
        for size, (width, n_layers) in (TINY_SIZES if figure.tiny else SIZES).items():
            at: dict[int, float] = {}
            model = a_model(family, width, n_layers).to(figure.device)
            for n_sites in ladder.sites:
                is_long = n_sites > ladder.held
                # In chunks attention is another computation, over a window.
                for chunk in (ladder.held, None) if is_long and family == "bk" else (None,):
                    given = {"mixer": family, "size": size, "N": n_sites, "chunk": chunk or ""}
                    has_bar = family == "bk" and is_long and chunk is None
                    figure.row(given, partial(trained, figure, model, n_sites, chunk, at, has_bar))
            del model


def a_model(family: str, width: int, n_layers: int) -> nn.Module:
    """Return an untrained model; the longest row decides nothing about its size."""
    knobs = {"model.mixer": family, "model.d_model": width, "model.n_layers": n_layers}
    if family == "bk":
        knobs |= {"model.n_heads": max(1, width // 8), "model.n_values": 8}
    else:
        knobs |= {"model.n_heads": max(1, width // 64), "model.n_seq": max(LADDER.sites)}
    return language_model(build(knobs).model, VOCABULARY)


def trained(
    figure: Figure,
    model: nn.Module,
    n_sites: int,
    chunk: int | None,
    at: dict[int, float],
    has_bar: bool,
) -> Row:
    """Take steps; ``at`` has the seconds per token of the compared length, once it is timed."""
    device = figure.device
    ladder = TINY_LADDER if figure.tiny else LADDER
    step = stepper(model, device, ladder, n_sites, chunk)
    seconds, n_tokens = median_seconds(step, device, rounds=3), max(ladder.sites)
    compared = ladder.sites[0]
    if n_sites == compared:
        at[compared] = seconds / n_tokens
    found: Row = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens/s": n_tokens / seconds,
        "ms per step": 1e3 * seconds,
        "peak GiB": peak_gib(step, device),
    }
    if compared not in at:
        return found
    over = seconds / n_tokens / at[compared]
    found[f"time over {compared}"] = over
    return found | (figure.bar("within 1.1", over <= MOST_OVER) if has_bar else {})


def stepper(
    model: nn.Module, device: torch.device, ladder: Ladder, n_sites: int, chunk: int | None
) -> Callable[[], None]:
    """Return what takes one step on rows of so many sites."""
    config, is_gpu, n_tokens = build({}), device.type == "cuda", max(ladder.sites)
    tokens_BM = torch.randint(VOCABULARY, (n_tokens // n_sites, n_sites + 1))
    tokens_BM = tokens_BM.pin_memory() if is_gpu else tokens_BM
    optimizer, blocks = adamw(model, config.optimizer), Blocks(model)
    guard = Guard(device, None, 0)

    def step() -> None:
        sent: Tensor = tokens_BM.to(device, non_blocking=True)
        rounds = torch.split(sent, max(1, ladder.held // n_sites))
        optimizer_step(
            model,
            optimizer,
            [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in rounds],
            TokenTally(config.model, None, chunk),
            clip_norm=1.0,
            autocast=torch.autocast(device.type, torch.bfloat16, enabled=is_gpu),
            blocks=blocks,
            guard=guard,
        )

    return step


if __name__ == "__main__":
    main("models", "Training steps of language models", measure_all, 140)
