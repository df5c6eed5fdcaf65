"""What every token would give at each threshold: recorded in one pass, and truly evaluated.

Letters: B windows at once, N sites, S tokens, L layers, D width, V vocabulary, T thresholds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.nn.act import ActDepth
from bkray.nn.depth import Running, alone
from bkray.nn.exits import ExitDepth
from bkray.nn.lm import LanguageModel, Prediction, sites_of
from bkray.nn.moe import Routing
from bkray.ops.sureness import sureness
from bkray.train.recorded import Windows, finite, model_device, recording
from bkray.train.step import token_loss_nats


class Stops(NamedTuple):
    """What every token would give if it stopped at each layer, from a pass in which none did.

    A token stops at the first layer whose score reaches the threshold, and at the last one.
    """

    score_SL: Tensor
    """(S, L - 1). Halting probability so far of ACT, sureness of an early exit."""
    loss_SL: Tensor
    """Nats, (S, L)."""


def recorded_stops(model: LanguageModel, depth: ActDepth | ExitDepth, windows: Windows) -> Stops:
    """Return scores and losses of one pass in which every token runs through every layer.

    It reads the states of every layer: L passes through the head in place of one.

    Raises:
        DataError: a loss is not finite.
    """
    scores, losses = [], []
    with recording(model, told=depth if isinstance(depth, ExitDepth) else None):
        for inputs_BN, targets_BN in windows.parts(model_device(model)):
            with windows.autocast:
                if isinstance(depth, ActDepth):
                    score_BNL, loss_BNL = _act_stops(model, depth, inputs_BN, targets_BN)
                else:
                    score_BNL, loss_BNL = _exit_stops(model, depth, inputs_BN, targets_BN)
            scores.append(score_BNL.flatten(0, 1).double().cpu())
            losses.append(loss_BNL.flatten(0, 1).double().cpu())
    return Stops(torch.cat(scores), finite(torch.cat(losses)))


def _act_stops(
    model: LanguageModel, depth: ActDepth, inputs_BN: Tensor, targets_BN: Tensor
) -> tuple[Tensor, Tensor]:
    """Read the weighted sum of states as it would be at a stop behind each layer."""
    hidden_BND = model.embed(inputs_BN)
    run = Running(hidden_BND, sites_of(hidden_BND), hidden_BND.new_zeros(inputs_BN.shape))
    sum_BND = torch.zeros_like(hidden_BND)
    scores, losses = [], []
    for layer in depth.layers([alone(block) for block in model.blocks]):  # type: ignore[arg-type]
        assert run.c_BM is not None
        left_BN1 = (1 - run.c_BM)[..., None]
        halted = layer._replace(threshold=math.inf).run(run)
        stopped = Prediction(model.read(sum_BND + left_BN1 * halted.hidden_BMD))
        losses.append(token_loss_nats(stopped, targets_BN))
        scores.append(halted.c_BM)
        sum_BND = sum_BND + halted.weight_BM[..., None] * halted.hidden_BMD
        run = run._replace(hidden_BMD=halted.hidden_BMD, c_BM=halted.c_BM)
    return torch.stack(scores[:-1], dim=-1), torch.stack(losses, dim=-1)


def _exit_stops(
    model: LanguageModel, depth: ExitDepth, inputs_BN: Tensor, targets_BN: Tensor
) -> tuple[Tensor, Tensor]:
    said = model(inputs_BN)
    heads = [Prediction(logits_BNV) for logits_BNV in (*said.exits, said.logits_BNV)]
    losses = [token_loss_nats(head, targets_BN) for head in heads]
    scores = [sureness(logits_BNV, depth.rule) for logits_BNV in said.exits]
    return torch.stack(scores, dim=-1), torch.stack(losses, dim=-1)


class _Known(nn.Module):
    """A layer whose answer is known, whoever asks."""

    def __init__(self, said: tuple[Tensor, Routing | None]) -> None:
        super().__init__()
        self.said = said

    def forward(self, *_: object) -> tuple[Tensor, Routing | None]:
        return self.said


def scored_at_each(
    thresholds: Sequence[float],
    model: LanguageModel,
    depth: ActDepth | ExitDepth,
    windows: Windows,
) -> list[tuple[float, float]]:
    """Return mean layers and loss in nats of an evaluation at each threshold.

    Every token runs through the first layer, whatever the threshold: that is computed once.
    The model's own threshold is put back.
    """
    trained = depth.threshold
    said_T2 = torch.zeros(len(thresholds), 2, dtype=torch.float64)
    try:
        with recording(model):
            for inputs_BN, targets_BN in windows.parts(model_device(model)):
                with windows.autocast:
                    hidden_BND = model.embed(inputs_BN)
                    first = model.blocks[0](hidden_BND, sites_of(hidden_BND), None)
                    layers = [_Known(first), *model.blocks[1:]]
                    for t, threshold in enumerate(thresholds):
                        depth.threshold = threshold
                        said_T2[t] += _sums(model.run(hidden_BND, layers), targets_BN).cpu()
    finally:
        depth.threshold = trained
    means_T2 = said_T2 / windows.targets_EN.numel()
    return [(layers, loss_nats) for layers, loss_nats in means_T2.tolist()]


def _sums(said: Prediction, targets_BN: Tensor) -> Tensor:
    """Return layers run and nats lost by all tokens together, (2,)."""
    assert said.layers_BN is not None
    return torch.stack(
        [said.layers_BN.double().sum(), token_loss_nats(said, targets_BN).double().sum()]
    )
