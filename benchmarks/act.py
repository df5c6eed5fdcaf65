"""What adaptive computation time costs when nobody stops, and what it saves when tokens do.

    python -m benchmarks.act

Each row times a dense and an ACT model of the same size in turn on the same batch, by the
processor's seconds; the figure is the median of the paired ratios. With nobody stopping the ACT
model runs exactly the dense layers, so what is above 1 is the machinery: halting units and the
weighted sum.
"""

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from benchmarks.judging import paired
from bkray.nn.act import ActDepth, HaltingUnit
from bkray.nn.build import language_model
from bkray.overrides import build
from bkray.train.step import losses
from bkray.trial import use_threads

PAIRS, WARM_UP = 15, 2
VOCABULARY = 256


def main() -> None:
    """Print the table."""
    use_threads(1)
    print("ACT time over dense time, median of paired ratios (min..max)")
    for d_model, n_seq, batch in ((64, 128, 32), (64, 512, 8), (128, 256, 16)):
        dense = model(d_model, n_seq, "dense")
        nobody = model(d_model, n_seq, "act", halting_bias=-20.0)
        half = model(d_model, n_seq, "act", share_stopping_at_2=0.5)
        tokens_BN = torch.randint(VOCABULARY, (batch, n_seq))
        for name, work in (("train", train_once), ("eval", evaluate_once)):
            size = f"d={d_model} N={n_seq} B={batch} {name:5s}"
            for who, act in (("nobody stops", nobody), ("half at layer 2", half)):
                one, other = (partial(work, model, tokens_BN) for model in (act, dense))
                paired(one, other, WARM_UP)  # the first ones compile
                print(f"{size}  {who} {spread(paired(one, other, PAIRS))}", flush=True)


def model(
    d_model: int,
    n_seq: int,
    depth: str,
    *,
    halting_bias: float | None = None,
    share_stopping_at_2: float | None = None,
) -> nn.Module:
    """Return a model whose halting is set by hand: never, or a share of tokens at layer 2."""
    torch.manual_seed(0)
    config = build({"model.d_model": d_model, "model.n_seq": n_seq, "model.depth": depth})
    built = language_model(config.model, VOCABULARY)
    if isinstance(built.depth, ActDepth):
        for layer, unit in enumerate(built.depth.halting, start=1):
            assert isinstance(unit, HaltingUnit)
            bias = halting_bias
            if share_stopping_at_2 is not None:
                bias = 0.0 if layer == 2 else -20.0
                # A random projection splits the tokens about evenly around the bias.
                nn.init.normal_(unit.down.weight, std=1e3 if layer == 2 else 0.0)
            assert bias is not None
            nn.init.constant_(unit.down.bias, bias)
    return built


def train_once(model: nn.Module, tokens_BN: torch.Tensor) -> None:
    """Run forward and backward of the loss, ponder cost included."""
    config = build({"model.depth": "act"} if isinstance(model.depth, ActDepth) else {})
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(losses(model(tokens_BN), tokens_BN, config.model, None)["total"])


@torch.no_grad()
def evaluate_once(model: nn.Module, tokens_BN: torch.Tensor) -> None:
    """Run forward alone."""
    model(tokens_BN)


def spread(seconds: Sequence[tuple[float, float]]) -> str:
    """Return the median of the ratios within the pairs, and the least and the most."""
    ratios = [one / other for one, other in seconds]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f})"


if __name__ == "__main__":
    main()
