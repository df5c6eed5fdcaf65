"""Depth policies: how many layers a token runs through.

Letters: B batch, N sites of the whole sequence, M sites still running (padded behind each row's
own tokens to the longest row), D width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.nn.block import Block
from bkray.nn.moe import Experts, Routing


class Deep(NamedTuple):
    """What a depth policy returns."""

    hidden_BND: Tensor
    layers_BN: Tensor
    """Layers run by each token, whole numbers."""
    remainder_BN: Tensor | None
    """ACT only: weight left at the stop, ``1 - c_{l-1}``; has the ponder cost's gradient."""
    routing: tuple[Routing, ...]


class DenseDepth(nn.Module):
    """Every token runs through every layer."""

    def forward(self, blocks: Sequence[Block], hidden_BND: Tensor, position_BN: Tensor) -> Deep:
        routing = []
        for block in blocks:
            hidden_BND, routed = block(hidden_BND, position_BN, None)
            routing += [routed] if routed is not None else []
        layers_BN = torch.full_like(position_BN, len(blocks))
        return Deep(hidden_BND, layers_BN, None, tuple(routing))


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

    def __init__(self, d_model: int, n_layers: int, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.halting = nn.ModuleList(HaltingUnit(d_model, n_layers) for _ in range(n_layers - 1))

    def forward(self, blocks: Sequence[Block], hidden_BND: Tensor, position_BN: Tensor) -> Deep:
        n_layers = len(blocks)
        run = _Running(
            hidden_BND, position_BN, None, None, hidden_BND.new_zeros(position_BN.shape)
        )
        sum_BND = hidden_BND  # replaced at the first layer
        remainder_BN, layers_BN = run.c_BM, torch.zeros_like(position_BN)
        routing = []
        for layer, block in enumerate(blocks, start=1):
            hidden_BMD, routed = block(run.hidden_BMD, run.position_BM, run.there_BM)
            routing += [routed] if routed is not None else []
            left_BM = 1 - run.c_BM
            if layer < n_layers:
                p_BM = self.halting[layer - 1](hidden_BMD).sigmoid()
                c_BM = run.c_BM + p_BM
                stops_BM = c_BM >= self.threshold
                weight_BM = torch.where(stops_BM, left_BM, p_BM)
            else:
                c_BM, stops_BM, weight_BM = run.c_BM, torch.ones_like(left_BM).bool(), left_BM
            if run.there_BM is not None:
                stops_BM = stops_BM & run.there_BM
            run = run._replace(hidden_BMD=hidden_BMD, c_BM=c_BM)
            if layer == 1:
                sum_BND = weight_BM[..., None] * hidden_BMD
            elif run.site_BM is None:
                sum_BND.addcmul_(weight_BM[..., None], hidden_BMD)  # no second copy of the sum
            else:
                sum_BND = run.add_to(sum_BND, weight_BM[..., None] * hidden_BMD)
            if stops_BM.any():
                remainder_BN = run.add_to(remainder_BN, torch.where(stops_BM, left_BM, 0.0))
                layers_BN = run.add_to(layers_BN, layer * stops_BM)
                run = run.without(stops_BM) if layer < n_layers else run
            if run.hidden_BMD.shape[1] == 0:
                idle = [block.feed_forward for block in blocks[layer:]]
                routing += [experts.unused() for experts in idle if isinstance(experts, Experts)]
                break
        return Deep(sum_BND, layers_BN, remainder_BN, tuple(routing))


class _Running(NamedTuple):
    """The tokens still running. ``None`` in ``site`` and ``there``: nobody has stopped, M = N."""

    hidden_BMD: Tensor
    position_BM: Tensor
    site_BM: Tensor | None
    """Where each token stands in the whole sequence."""
    there_BM: Tensor | None
    """False where a row is padded."""
    c_BM: Tensor
    """Halting probability so far."""

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

    def without(self, stops_BM: Tensor) -> "_Running":
        """Return the others, in order, each row padded to the longest with tokens that stopped."""
        stays_BM = ~stops_BM if self.there_BM is None else self.there_BM & ~stops_BM
        longest = int(stays_BM.sum(1).max())
        # A stable sort keeps the order, which is what keeps the shorter sequence causal.
        order_BM = (~stays_BM).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        there_BM = stays_BM.gather(1, order_BM)
        return _Running(
            self.hidden_BMD.gather(
                1, order_BM[..., None].expand(-1, -1, self.hidden_BMD.shape[-1])
            ),
            self.position_BM.gather(1, order_BM),
            order_BM if self.site_BM is None else self.site_BM.gather(1, order_BM),
            None if bool(there_BM.all()) else there_BM,
            self.c_BM.gather(1, order_BM),
        )
