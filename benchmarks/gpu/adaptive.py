"""What adaptive computation is measured to save: ACT and learned length beside dense models.

    python -m benchmarks.gpu.adaptive [--out FOLDER] [--tiny]

Untrained models of width 512 and 4 layers whose choices are set by hand, evaluated in float32 on
32 rows of 2,048 tokens, in turn with a dense model of the same size; ``speedup`` is the median
ratio by the device's events, ``estimate`` layers over layers run, or sites over sites computed.
"""

from functools import partial

import torch
from torch import nn

from benchmarks.act import model as act_model
from benchmarks.gpu.figure import Figure, Row, main
from bkray.nn.build import built_in, language_model
from bkray.nn.length import LearnedLength
from bkray.overrides import build
from bkray.train import measure

VOCABULARY, BINS = 256, 8


def measure_all(figure: Figure) -> None:
    """Rows of ACT with nobody stopping and half at layer 2, and of three lengths."""
    width, n_seq = (16, 32) if figure.tiny else (512, 2048)
    for name, halting in (
        ("ACT, nobody stops", {"halting_bias": -20.0}),
        ("ACT, half stop at layer 2", {"share_stopping_at_2": 0.5}),
    ):
        figure.row({"who": name}, partial(of_depth, figure, width, n_seq, halting))
    for bin_ in (0, BINS // 2 - 1, BINS - 1):
        name = f"learned length, bin {bin_ + 1} of {BINS}"
        figure.row({"who": name}, partial(of_length, figure, width, n_seq, bin_))


def of_depth(figure: Figure, width: int, n_seq: int, halting: dict[str, float]) -> Row:
    """Time ACT."""
    adaptive = act_model(width, n_seq, "act", **halting).to(figure.device)
    dense = act_model(width, n_seq, "dense").to(figure.device)
    tokens_BN = tokens(figure, n_seq)
    with torch.no_grad():
        layers = adaptive.eval()(tokens_BN[:4]).layers_BN.float().mean()
    return compared(adaptive, dense, tokens_BN, len(dense.blocks) / float(layers))  # type: ignore[arg-type]


def of_length(figure: Figure, width: int, n_seq: int, bin_: int) -> Row:
    """Time a model that cuts every row at the same bin."""
    shape = {"model.d_model": width, "model.n_seq": n_seq}
    knobs = {**shape, "model.length": "learned", "model.length_bins": BINS}
    learned = built_in(build(knobs).model, VOCABULARY)
    assert isinstance(learned, LearnedLength)
    nn.init.zeros_(learned.predictor.down.weight)
    with torch.no_grad():
        learned.predictor.down.bias.fill_(-20.0)
        learned.predictor.down.bias[bin_] = 20.0
    dense = language_model(build(shape).model, VOCABULARY).to(figure.device)
    estimate = n_seq / learned.predictor.bins[bin_]
    return compared(learned.to(figure.device), dense, tokens(figure, n_seq), estimate)


def tokens(figure: Figure, n_seq: int) -> torch.Tensor:
    """Return random rows."""
    return torch.randint(VOCABULARY, (4 if figure.tiny else 32, n_seq), device=figure.device)


def compared(
    adaptive: nn.Module, dense: nn.Module, tokens_BN: torch.Tensor, estimate: float
) -> Row:
    """Time both in turn."""
    seen = measure.speed(adaptive, dense, tokens_BN, rounds=5)
    assert seen.speedup is not None
    return {
        "microseconds per token": 1e6 * seen.seconds_per_token,
        "speedup": seen.speedup,
        "estimate": estimate,
    }


if __name__ == "__main__":
    main("adaptive", "Adaptive computation beside dense models", measure_all, 60)
