"""Depth policies: how many layers a token runs through.

Letters: B batch, N sites of the whole sequence, M sites still running (padded behind each row's
own tokens to the longest row), D width.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.nn.block import Block
from bkray.nn.moe import Experts, Routing


class Sparsity(NamedTuple):
    """What learned sparsity did to a batch: means over a row's tokens and the scored layers."""

    probability_B: Tensor
    """Of computing a token; has the gradient of what computing costs."""
    computed_B: Tensor
    """Share that was computed."""


class Deep(NamedTuple):
    """What a depth policy returns."""

    hidden_BND: Tensor
    layers_BN: Tensor
    """Layers run by each token, whole numbers."""
    remainder_BN: Tensor | None
    """ACT only: weight left at the stop, ``1 - c_{l-1}``; has the ponder cost's gradient."""
    routing: tuple[Routing, ...]
    logits_BNV: Tensor | None = None
    """Early exit only: what the head said at which a token left."""
    exits: tuple[Tensor, ...] = ()
    """Early exit in training only: the logits of all heads but the last one, each (B, N, V)."""
    sparsity: Sparsity | None = None
    sure_BN: Tensor | None = None
    """ACT with early exit in evaluation only: who left because a head was sure, not by halting."""


class DenseDepth(nn.Module):
    """Every token runs through every layer; ``there_BN`` is False where a row is padded."""

    streams = True

    def forward(
        self,
        blocks: Sequence[Block],
        hidden_BND: Tensor,
        position_BN: Tensor,
        there_BN: Tensor | None = None,
    ) -> Deep:
        routing = []
        for block in blocks:
            hidden_BND, routed = block(hidden_BND, position_BN, there_BN)
            routing += [routed] if routed is not None else []
        layers_BN = torch.full_like(position_BN, len(blocks))
        return Deep(hidden_BND, layers_BN, None, tuple(routing))


class Stage(NamedTuple):
    """Blocks that run one after another, and how; nobody stops between them."""

    blocks: Sequence[Block]
    policy: Callable[[Sequence[Block], Tensor, Tensor, Tensor | None], Deep]

    def run(self, hidden_BMD: Tensor, position_BM: Tensor, there_BM: Tensor | None) -> Deep:
        """Return what the blocks make of the tokens; ``there_BM`` as for ``Running``."""
        return self.policy(self.blocks, hidden_BMD, position_BM, there_BM)


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

    def forward(self, blocks: Sequence[Block], hidden_BND: Tensor, position_BN: Tensor) -> Deep:
        return run_until_halted(self.layers(blocks), hidden_BND, position_BN)

    def layers(self, blocks: Sequence[Block]) -> "list[HaltingLayer]":
        """Return the blocks with who stops behind each of them."""
        units = [*self.halting, None]
        pairs = zip(blocks, units, strict=True)
        return [HaltingLayer(block, unit, self.threshold) for block, unit in pairs]


class Running(NamedTuple):
    """The tokens still running. ``None`` in ``site`` and ``there``: nobody has stopped, M = N."""

    hidden_BMD: Tensor
    position_BM: Tensor
    c_BM: Tensor | None = None
    """Halting probability so far, where there is one."""
    site_BM: Tensor | None = None
    """Where each token stands in the whole sequence."""
    there_BM: Tensor | None = None
    """False where a row is padded."""

    def add_to(self, whole_BN: Tensor, part_BM: Tensor) -> Tensor:
        """Return ``whole`` with each running token's part added at its own site."""
        if self.site_BM is None:
            return whole_BN + part_BM
        if self.there_BM is not None:
            # Filled, not multiplied by 0: a NaN would pass from the padding to an earlier site.
            absent = ~self.there_BM if part_BM.dim() == 2 else ~self.there_BM[..., None]
            part_BM = part_BM.masked_fill(absent, 0)
        site = self.site_BM if part_BM.dim() == 2 else self.site_BM[..., None].expand_as(part_BM)
        return whole_BN.scatter_add(1, site, part_BM.to(whole_BN.dtype))

    def without(self, stops_BM: Tensor, at_least: int = 0) -> "Running":
        """Return the others, in order, each row padded to the longest with tokens that stopped.

        Rows have ``at_least`` so many places, all of them padded where nobody goes on.
        """
        stays_BM = ~stops_BM if self.there_BM is None else self.there_BM & ~stops_BM
        longest = max(int(stays_BM.sum(1).max()), at_least)
        # A stable sort keeps the order, which is what keeps the shorter sequence causal.
        order_BM = (~stays_BM).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        there_BM = stays_BM.gather(1, order_BM)
        return Running(
            self.hidden_BMD.gather(
                1, order_BM[..., None].expand(-1, -1, self.hidden_BMD.shape[-1])
            ),
            self.position_BM.gather(1, order_BM),
            None if self.c_BM is None else self.c_BM.gather(1, order_BM),
            order_BM if self.site_BM is None else self.site_BM.gather(1, order_BM),
            None if bool(there_BM.all()) else there_BM,
        )


class Halted(NamedTuple):
    """What one layer did to the tokens that ran through it."""

    hidden_BMD: Tensor
    c_BM: Tensor
    stops_BM: Tensor
    """False where a row is padded."""
    weight_BM: Tensor
    """Share of this state in the result; at a stop it is the remainder."""
    routed: Routing | None


class HaltingLayer(NamedTuple):
    """A block, and who stops behind it."""

    block: Block
    unit: nn.Module | None
    """Says the logit of stopping here; ``None`` at the last layer, where everybody stops."""
    threshold: float

    def run(self, run: Running) -> Halted:
        """Return what becomes of the running tokens; ``run`` itself stays as it is."""
        assert run.c_BM is not None
        hidden_BMD, routed = self.block(run.hidden_BMD, run.position_BM, run.there_BM)
        left_BM = 1 - run.c_BM
        if self.unit is None:
            c_BM, stops_BM, weight_BM = run.c_BM, torch.ones_like(left_BM).bool(), left_BM
        else:
            p_BM = self.unit(hidden_BMD).sigmoid()
            c_BM = run.c_BM + p_BM
            stops_BM = c_BM >= self.threshold
            weight_BM = torch.where(stops_BM, left_BM, p_BM)
        if run.there_BM is not None:
            stops_BM = stops_BM & run.there_BM
        return Halted(hidden_BMD, c_BM, stops_BM, weight_BM, routed)


Behind = Callable[[Running, Halted, Tensor | None], Halted]
"""Has a say behind a layer: given who ran, what it did, and the weighted sum of the states before
it (``None`` behind the first), returns what is to count."""


def run_until_halted(
    layers: Sequence[HaltingLayer],
    hidden_BND: Tensor,
    position_BN: Tensor,
    behind: Behind | None = None,
) -> Deep:
    """Run the layers over the tokens that have not stopped; the last layer stops the rest.

    ``behind`` is asked at every layer but the last one.
    """
    remainder_BN = hidden_BND.new_zeros(position_BN.shape)
    run = Running(hidden_BND, position_BN, remainder_BN)
    sum_BND: Tensor | None = None
    layers_BN = torch.zeros_like(position_BN)
    routing: list[Routing] = []
    for depth, layer in enumerate(layers, start=1):
        halted = layer.run(run)
        if behind is not None and depth < len(layers):
            halted = behind(run, halted, sum_BND)
        hidden_BMD, c_BM, stops_BM, weight_BM, routed = halted
        routing += [routed] if routed is not None else []
        run = run._replace(hidden_BMD=hidden_BMD, c_BM=c_BM)
        if sum_BND is None:
            sum_BND = weight_BM[..., None] * hidden_BMD
        elif run.site_BM is None:
            sum_BND.addcmul_(weight_BM[..., None], hidden_BMD)  # no second copy of the sum
        else:
            sum_BND = run.add_to(sum_BND, weight_BM[..., None] * hidden_BMD)
        if stops_BM.any():
            remainder_BN = run.add_to(remainder_BN, torch.where(stops_BM, weight_BM, 0.0))
            layers_BN = run.add_to(layers_BN, depth * stops_BM)
            run = run.without(stops_BM) if depth < len(layers) else run
        if run.hidden_BMD.shape[1] == 0:
            routing += unused([layer.block for layer in layers[depth:]])
            break
    assert sum_BND is not None
    return Deep(sum_BND, layers_BN, remainder_BN, tuple(routing))


def unused(blocks: Sequence[Block]) -> list[Routing]:
    """Return the routing of blocks that no token reached, one entry per layer with experts."""
    idle = [block.feed_forward for block in blocks]
    return [experts.unused() for experts in idle if isinstance(experts, Experts)]
