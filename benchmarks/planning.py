"""What models past one box would need: GPUs, memory, days. The tables of docs/scaling.md.

    python -m benchmarks.planning

Measured here, on small models: arithmetic per token, bytes of weights, gradients and optimizer per
parameter, bytes that a layer keeps per token for its backward pass. Assumed, since no clock of
ours has seen it: what a GPU delivers. Every formula is a function below, named as in the page.

Letters: P parameters, T tokens to train on, N tokens a row, D width, L layers.
"""

import math
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from bkray.config import ModelConfig
from bkray.nn.build import language_model
from bkray.nn.lm import LanguageModel
from bkray.overrides import build
from bkray.train.measure import flops_per_token
from bkray.train.step import token_loss_nats

SMALL = (64, 128, 256)
"""Widths that are measured, at 4 layers."""
VOCABULARY = 32_768
SIZES = {"100M": (768, 8), "1B": (2048, 14), "10B": (4096, 36)}
"""Name to width and layers; heads D/4, 6 value channels a head and a feed-forward width of 4 D, as
in the default model."""
LENGTHS = (131_072, 1_048_576)
CHUNKS = (512, 1024, 2048, 4096)
"""Tokens of a row that may be held at once."""

TOKENS_PER_PARAMETER = 20
"""Hoffmann et al. 2022, Training Compute-Optimal Large Language Models."""
PASSES = 4
"""Forward passes that a step in chunks costs: one for the states, one again, two to go back."""
KEPT_PER_TOKEN = 560
"""Bytes a step in chunks takes per token beyond a chunk: 337 at D=32 and 442 at D=128 from 32,768
to 131,072 tokens, at most 0.55 KiB from 8,192 on (``benchmarks.streaming``, docs/log.md)."""
SHARE_TO_TALK = 0.1
"""Of a step's time that communication may take."""


class Gpu(NamedTuple):
    """Figures of an NVIDIA H100 SXM from its data sheet, and two assumptions."""

    flops: float = 989e12
    """Dense bfloat16, per second."""
    memory: float = 80e9
    share_delivered: float = 0.3
    """Assumed. Replace it by a measured one: days are inversely proportional to it."""
    network: float = 50e9
    """Bytes a second to other boxes: a port of 400 Gbit/s per GPU."""
    latency: float = 2e-5
    """Assumed: seconds for a small message between GPUs."""

    @property
    def delivered(self) -> float:
        return self.flops * self.share_delivered


class Cost(NamedTuple):
    """What the small models cost, the largest of the measured ones."""

    forward_per_2p: float
    """Arithmetic of a forward pass per token, over 2 P; P is without the table of embeddings,
    which the large models count in: at most a fifth too much."""
    state_bytes: float
    """Of weights, gradients and optimizer, per parameter."""
    kept_bytes: float
    """Kept for the backward pass per token, layer and unit of width."""


def main() -> None:
    """Print what is measured, then the tables."""
    costs = [measured(width) for width in SMALL]
    print("width  flops/token over 2P  state bytes/parameter  bytes kept/(token layer width)")
    for width, one in zip(SMALL, costs, strict=True):
        print(f"{width:5d}  {one.forward_per_2p:19.3f}  {one.state_bytes:21.2f}", end="  ")
        print(f"{one.kept_bytes:30.1f}")
    cost, gpu = Cost(*(max(figures) for figures in zip(*costs, strict=True))), Gpu()
    print(
        "\nmodel  parameters       T   states  chunk, tokens  GPUs  GPU-days  days on 8, 64, 512"
    )
    for name, (width, layers) in SIZES.items():
        p, chunk = n_params(width, layers), longest_chunk(width, layers, cost, gpu)
        days = gpu_days(p, cost, gpu)
        print(
            f"{name:>5}  {p / 1e9:8.2f} G  {TOKENS_PER_PARAMETER * p / 1e9:4.0f} G"
            f"  {cost.state_bytes * p / 1e9:4.0f} GB"
            f"  {chunk_bytes(chunk, width, layers, cost) / 1e9:3.0f} GB, {chunk:5d}"
            f"  {fewest_gpus(p, width, layers, cost, gpu):4d}  {days:8,.1f}"
            f"  {', '.join(f'{days / n:,.2f}' for n in (8, 64, 512))}"
        )
    print("\nmodel          N  a row's tokens  steps on 64 GPUs  most splits  attention over ours")
    for (name, (width, layers)), n in product(SIZES.items(), LENGTHS):
        p = n_params(width, layers)
        print(
            f"{name:>5}  {n:9,}  {KEPT_PER_TOKEN * n / 1e9:11.2f} GB"
            f"  {TOKENS_PER_PARAMETER * p / (64 * n):16,.0f}"
            f"  {most_splits(n, width, layers, cost, gpu):11,d}"
            f"  {1 + attention_flops(n, width, layers) / (2 * p * cost.forward_per_2p):19.1f}"
        )
    print(f"\ntokens per GPU and step for gradients to take 10%: {least_tokens(cost, gpu):,.0f}")


def measured(width: int) -> Cost:
    """Return what a small model costs, from one step of it."""
    torch.manual_seed(0)
    model = language_model(of_size(width, 4), 256)
    tokens_BN = torch.randint(256, (2, 257))
    kept = kept_for_backward(model, tokens_BN[:, :-1], tokens_BN[:, 1:])
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    states = [p for p in model.parameters()] + [p.grad for p in model.parameters()]
    states += [x for one in optimizer.state.values() for x in one.values() if x.dim()]
    n_matrices = sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel()
    return Cost(
        flops_per_token(model, tokens_BN[:, :-1]) / (2 * n_matrices),
        sum(x.numel() * x.element_size() for x in states if x is not None)
        / sum(p.numel() for p in model.parameters()),
        kept / (512 * 4 * width),
    )


def kept_for_backward(model: LanguageModel, tokens_BN: Tensor, targets_BN: Tensor) -> int:
    """Take a step's gradients; return the bytes that the layers kept for them beside weights."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    hidden_BND = model.embed(tokens_BN)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        said = model.run(hidden_BND)
    torch.autograd.backward(token_loss_nats(said, targets_BN).mean())
    logits = said.logits_BNV
    return sum(kept.values()) - kept.get(logits.untyped_storage().data_ptr(), 0)


def of_size(width: int, layers: int) -> ModelConfig:
    """Return the config of a BK model."""
    sizes = {"model.d_model": width, "model.n_layers": layers, "model.n_heads": width // 4}
    return build(sizes).model


@cache
def n_params(width: int, layers: int) -> int:
    """Return the parameters of a model that is never made."""
    with torch.device("meta"):
        model = language_model(of_size(width, layers), VOCABULARY)
    return sum(p.numel() for p in model.parameters())


def gpu_days(p: int, cost: Cost, gpu: Gpu) -> float:
    """Return ``PASSES * 2 P * forward_per_2p * T / delivered``, in days of one GPU."""
    flops = PASSES * 2 * p * cost.forward_per_2p * TOKENS_PER_PARAMETER * p
    return flops / gpu.delivered / 86_400


def chunk_bytes(chunk: int, width: int, layers: int, cost: Cost) -> float:
    """Return ``kept_bytes * D * L * chunk`` and three copies of its logits in float32."""
    return chunk * (cost.kept_bytes * width * layers + 3 * 4 * VOCABULARY)


def longest_chunk(width: int, layers: int, cost: Cost, gpu: Gpu) -> int:
    """Return the longest of ``CHUNKS`` that takes at most a third of a GPU."""
    fitting = [c for c in CHUNKS if chunk_bytes(c, width, layers, cost) <= gpu.memory / 3]
    return max(fitting)


def fewest_gpus(p: int, width: int, layers: int, cost: Cost, gpu: Gpu) -> int:
    """Return over how many GPUs the states must be shared out; 1: DDP does.

    Nine tenths of the memory are used; a chunk, the tokens of the longest row and the weights of
    two layers, which are gathered while they run, are everybody's own.
    """
    chunk = longest_chunk(width, layers, cost, gpu)
    own = chunk_bytes(chunk, width, layers, cost) + KEPT_PER_TOKEN * max(LENGTHS)
    own += 2 * 4 * p / layers
    return math.ceil(cost.state_bytes * p / (0.9 * gpu.memory - own))


def least_tokens(cost: Cost, gpu: Gpu) -> float:
    """Return the tokens per GPU and step at which a ring all-reduce of float32 gradients, ``8 P /
    network`` seconds, takes ``SHARE_TO_TALK`` of the arithmetic: P cancels."""
    return (8 / gpu.network) / (SHARE_TO_TALK * PASSES * 2 * cost.forward_per_2p / gpu.delivered)


def most_splits(n: int, width: int, layers: int, cost: Cost, gpu: Gpu) -> int:
    """Return over how many GPUs a row may be split before handing states on takes 10% of a step.

    A GPU composes its own part into one map per head and layer, all of which are exchanged in
    ``log2(splits)`` messages, in each pass: ``PASSES * L * log2(splits) * latency`` seconds.
    """
    flops = PASSES * 2 * n_params(width, layers) * cost.forward_per_2p
    row_seconds = n * flops / gpu.delivered
    splits = 1
    while PASSES * layers * math.log2(2 * splits) * gpu.latency <= SHARE_TO_TALK * row_seconds / (
        2 * splits
    ) and n // (2 * splits) >= longest_chunk(width, layers, cost, gpu):
        splits *= 2
    return splits


def attention_flops(n: int, width: int, layers: int) -> float:
    """Return the arithmetic of causal attention's two products per token, ``2 L N D``."""
    return 2 * layers * n * width


if __name__ == "__main__":
    main()
