"""A stream of a million tokens: speed and memory beside a shorter one.

    python -m benchmarks.gpu.stream [--out FOLDER] [--tiny]

A BK model of about 10M parameters, untrained, bf16 autocast, scores random bytes with the state
carried from chunk to chunk. Memory is to be that of one chunk, whatever the stream.
"""

from functools import partial

import numpy as np
import torch

from benchmarks.gpu.figure import Figure, Row, main
from benchmarks.gpu.models import SIZES, TINY_SIZES, VOCABULARY, a_model
from bkray.train.streaming import stream_loss

STREAMS = ((131_072, 32_768), (1_048_576, 32_768), (1_048_576, 4096))
TINY = ((64, 32), (128, 32))
"""Tokens and chunk."""


def measure_all(figure: Figure) -> None:
    """One row per stream."""
    shape = TINY_SIZES["tiny"] if figure.tiny else SIZES["10M"]
    model = a_model("bk", *shape).to(figure.device)
    text = np.random.default_rng(0).integers(VOCABULARY, size=100_000)
    is_gpu = figure.device.type == "cuda"
    autocast = torch.autocast(figure.device.type, torch.bfloat16, enabled=is_gpu)

    def streamed(n_tokens: int, chunk: int) -> Row:
        stream_loss(model, text, 2 * chunk, chunk=chunk, autocast=autocast)  # compiles
        said = stream_loss(model, text, n_tokens, chunk=chunk, autocast=autocast)
        return {
            "tokens/s": said.tokens_per_second,
            "seconds": said.seconds,
            "peak MiB": said.peak_memory_mib,
            "loss_nats": said.loss_nats,
        }

    for n_tokens, chunk in TINY if figure.tiny else STREAMS:
        given = {"tokens": n_tokens, "chunk": chunk}
        figure.row(given, partial(streamed, n_tokens, chunk))


if __name__ == "__main__":
    main("stream", "A stream of a million tokens", measure_all, 50)
