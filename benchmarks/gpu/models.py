"""Training of whole language models by size and length: tokens per second and peak memory.

    python -m benchmarks.gpu.models [--out FOLDER] [--tiny]

A step is the trial's own: bf16 autocast, fused AdamW, norms by block and the guard; 32,768 tokens
in rows of N, random bytes from the host, pinned. Rows of 131,072 are one row, held 32,768 sites at
a time (``train.chunk``). ``time over 8192`` is the time of a token over that in rows of 8,192.
"""

import torch
from torch import Tensor, nn

from benchmarks.gpu.figure import Figure, Row, main, median_seconds, peak_gib
from bkray.nn.build import language_model
from bkray.overrides import build
from bkray.train.guard import Guard
from bkray.train.optim import adamw
from bkray.train.step import optimizer_step
from bkray.train.watch import Blocks

SIZES = {"10M": (320, 8), "50M": (640, 9), "150M": (1024, 11)}
"""Width and layers."""
TINY_SIZES = {"tiny": (16, 2)}
SITES, TOKENS, CHUNK, COMPARED = (2048, 8192, 32_768, 131_072), 32_768, 32_768, 8192
VOCABULARY = 256
FAMILIES = ("bk", "attention")


def measure_all(figure: Figure) -> None:
    """One row per size, family and length; BK first, for the time may be short."""
    sizes = TINY_SIZES if figure.tiny else SIZES
    for family in FAMILIES:
        for size, (width, n_layers) in sizes.items():
            at: dict[int, float] = {}
            model = a_model(family, width, n_layers).to(figure.device)
            for n_sites in (16, 32) if figure.tiny else (COMPARED, 2048, *SITES[2:]):
                given = {"mixer": family, "size": size, "N": n_sites}
                figure.row(
                    given, lambda n=n_sites, m=model, f=family, at=at: trained(figure, m, f, n, at)
                )
            del model


def a_model(family: str, width: int, n_layers: int) -> nn.Module:
    """Return an untrained model; the longest row decides nothing about its size."""
    knobs = {"model.mixer": family, "model.d_model": width, "model.n_layers": n_layers}
    if family == "bk":
        knobs |= {"model.n_heads": max(1, width // 8), "model.n_values": 8}
    else:
        knobs |= {"model.n_heads": max(1, width // 64), "model.n_seq": SITES[-1]}
    return language_model(build(knobs).model, VOCABULARY)


def trained(
    figure: Figure, model: nn.Module, family: str, n_sites: int, at: dict[int, float]
) -> Row:
    """Take steps; ``at`` collects the seconds per token of each length."""
    device, config = figure.device, build({})
    is_gpu = device.type == "cuda"
    n_rows = max(1, (32 if figure.tiny else TOKENS) // n_sites)
    tokens_BM = torch.randint(VOCABULARY, (n_rows, n_sites + 1))
    tokens_BM = tokens_BM.pin_memory() if is_gpu else tokens_BM
    optimizer, blocks, guard = (
        adamw(model, config.optimizer),
        Blocks(model),
        Guard(device, None, 0),
    )
    # In chunks attention is another computation, over a window: it takes its rows whole.
    chunk = CHUNK if family == "bk" and n_sites > CHUNK else None

    def step() -> None:
        sent: Tensor = tokens_BM.to(device, non_blocking=True)
        optimizer_step(
            model,
            optimizer,
            [(sent[:, :-1].contiguous(), sent[:, 1:].contiguous())],
            config.model,
            load_LE=None,
            clip_norm=1.0,
            autocast=torch.autocast(device.type, torch.bfloat16, enabled=is_gpu),
            blocks=blocks,
            guard=guard,
            chunk=chunk,
        )

    seconds = median_seconds(step, device, rounds=3)
    n_tokens = n_rows * n_sites
    at[n_sites] = seconds / n_tokens
    found: Row = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens/s": n_tokens / seconds,
        "ms per step": 1e3 * seconds,
        "peak GiB": peak_gib(step, device),
    }
    return found | ({"time over 8192": at[n_sites] / at[COMPARED]} if COMPARED in at else {})


if __name__ == "__main__":
    main("models", "Training steps of language models", measure_all, 140)
