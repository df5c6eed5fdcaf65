"""Adaptive computation time: a token stops where its halting probabilities add up.

Letters as in ``depth``.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.nn.block import Block
from bkray.nn.depth import Deep, Running, Stage, alone, unused
from bkray.nn.moe import Routing


class HaltingUnit(nn.Module):
    """``D -> D/2 -> 1``, the logit of stopping here. Starts at ``sigmoid(logit) = 1/n_layers``."""

    def __init__(self, d_model: int, n_layers: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_model // 2)
        self.down = nn.Linear(d_model // 2, 1)
        nn.init.zeros_(self.down.weight)
        nn.init.constant_(self.down.bias, -math.log(n_layers - 1))

    def forward(self, hidden_BND: Tensor) -> Tensor:
        logit: Tensor = self.down(torch.relu_(self.up(hidden_BND)))
        return logit.squeeze(-1)


class ActDepth(nn.Module):
    """A token stops where its halting probabilities add up to the threshold.

    ``c_l = c_{l-1} + p_l``; a token stops at the first layer with ``c_l >= threshold``, and always
    at the last one. The result is the sum of its states weighted by ``p_l`` and, at the stop, by
    the remainder ``1 - c_{l-1}``: the weights of a token add up to 1.

    Stopped tokens leave the sequence. The running ones are gathered, in order, into a shorter
    sequence for the next layer, whatever the rest of the batch does: a stopped token is invisible
    to deeper layers.

    Source: Graves 2016, Adaptive Computation Time for Recurrent Neural Networks; stopping by
    compaction is ours.
    """

    streams = True

    def __init__(self, d_model: int, n_layers: int, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.halting = nn.ModuleList(HaltingUnit(d_model, n_layers) for _ in range(n_layers - 1))

    def forward(
        self,
        blocks: Sequence[Block],
        hidden_BND: Tensor,
        position_BN: Tensor,
        there_BN: Tensor | None = None,
    ) -> Deep:
        stages = [alone(block) for block in blocks]
        return run_until_halted(self.layers(stages), hidden_BND, position_BN, there_BN)

    def layers(self, stages: Sequence[Stage]) -> "list[HaltingLayer]":
        """Return the stages with who stops behind each of them."""
        units = [*self.halting, None]
        pairs = zip(stages, units, strict=True)
        return [HaltingLayer(stage, unit, self.threshold) for stage, unit in pairs]


class Halted(NamedTuple):
    """What one layer did to the tokens that ran through it."""

    hidden_BMD: Tensor
    c_BM: Tensor
    stops_BM: Tensor
    """False where a row is padded."""
    weight_BM: Tensor
    """Share of this state in the result; at a stop it is the remainder."""
    inside: Deep
    """What the stage itself had to tell."""


class HaltingLayer(NamedTuple):
    """A stage, of one block mostly, and who stops behind it."""

    stage: Stage
    unit: nn.Module | None
    """Says the logit of stopping here; ``None`` at the last layer, where everybody stops."""
    threshold: float

    def run(self, run: Running) -> Halted:
        """Return what becomes of the running tokens; ``run`` itself stays as it is."""
        assert run.c_BM is not None
        inside = self.stage.run(run.hidden_BMD, run.position_BM, run.there_BM)
        hidden_BMD, left_BM = inside.hidden_BND, 1 - run.c_BM
        if self.unit is None:
            c_BM, stops_BM, weight_BM = run.c_BM, torch.ones_like(left_BM).bool(), left_BM
        else:
            p_BM = self.unit(hidden_BMD).sigmoid()
            c_BM = run.c_BM + p_BM
            stops_BM = c_BM >= self.threshold
            weight_BM = torch.where(stops_BM, left_BM, p_BM)
        if run.there_BM is not None:
            stops_BM = stops_BM & run.there_BM
        return Halted(hidden_BMD, c_BM, stops_BM, weight_BM, inside)


Behind = Callable[[Running, Halted, Tensor | None], Halted]
"""Has a say behind a layer: given who ran, what it did, and the weighted sum of the states before
it (``None`` behind the first), returns what is to count."""


def run_until_halted(
    layers: Sequence[HaltingLayer],
    hidden_BND: Tensor,
    position_BN: Tensor,
    there_BN: Tensor | None = None,
    behind: Behind | None = None,
) -> Deep:
    """Run the layers over the tokens that have not stopped; the last layer stops the rest.

    ``behind`` is asked at every layer but the last one. What the result says of padding, where
    ``there_BN`` is False, means nothing.
    """
    remainder_BN = hidden_BND.new_zeros(position_BN.shape)
    run = Running(hidden_BND, position_BN, remainder_BN, None, there_BN)
    sum_BND: Tensor | None = None
    layers_BN = torch.zeros_like(position_BN)
    routing: list[Routing] = []
    for depth, layer in enumerate(layers, start=1):
        halted = layer.run(run)
        if behind is not None and depth < len(layers):
            halted = behind(run, halted, sum_BND)
        hidden_BMD, c_BM, stops_BM, weight_BM, inside = halted
        routing += inside.routing
        layers_BN = run.add_to(layers_BN, inside.layers_BN)
        if inside.remainder_BN is not None:
            remainder_BN = run.add_to(remainder_BN, inside.remainder_BN)
        run = run._replace(hidden_BMD=hidden_BMD, c_BM=c_BM)
        if sum_BND is None:
            sum_BND = weight_BM[..., None] * hidden_BMD
        elif run.site_BM is None:
            sum_BND.addcmul_(weight_BM[..., None], hidden_BMD)  # no second copy of the sum
        else:
            sum_BND = run.add_to(sum_BND, weight_BM[..., None] * hidden_BMD)
        if stops_BM.any():
            remainder_BN = run.add_to(remainder_BN, torch.where(stops_BM, weight_BM, 0.0))
            run = run.without(stops_BM) if depth < len(layers) else run
        if run.hidden_BMD.shape[1] == 0:
            routing += unused([block for rest in layers[depth:] for block in rest.stage.blocks])
            break
    assert sum_BND is not None
    return Deep(sum_BND, layers_BN, remainder_BN, tuple(routing))
