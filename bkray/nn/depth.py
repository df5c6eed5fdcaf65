"""Depth policies: how many layers a token runs through.

Letters: B batch, N sites of the whole sequence, M sites still running (padded behind each row's
own tokens to the longest row), D width.
"""

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
    """Blocks that run one after another, and how; nobody leaves the stage between them."""

    blocks: Sequence[Block]
    policy: Callable[[Sequence[Block], Tensor, Tensor, Tensor | None], Deep]

    def run(self, hidden_BMD: Tensor, position_BM: Tensor, there_BM: Tensor | None) -> Deep:
        """Return what the blocks make of the tokens; ``there_BM`` as for ``Running``."""
        return self.policy(self.blocks, hidden_BMD, position_BM, there_BM)


def alone(block: Block) -> Stage:
    """Return the stage of one block."""
    return Stage([block], DenseDepth())


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


def unused(blocks: Sequence[Block]) -> list[Routing]:
    """Return the routing of blocks that no token reached, one entry per layer with experts."""
    idle = [block.feed_forward for block in blocks]
    return [experts.unused() for experts in idle if isinstance(experts, Experts)]
