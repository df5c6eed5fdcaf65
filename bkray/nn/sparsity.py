"""Learned sparsity: which layers compute a token, and which it bypasses.

Letters: B batch, N sites of the whole sequence, M sites that a layer computes, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bkray.nn.block import Block
from bkray.nn.depth import Deep, Running, Sparsity, unused
from bkray.nn.moe import Routing

KEPT_AT_FIRST = 2.0
"""Score of every token at the start, all the same: all are computed, with p = 0.88. Nearer to 0,
layers are given up before they have learnt anything; one that computes nobody stays so."""


class SparseDepth(nn.Module):
    """A score per token and layer, ``p = sigmoid(score)``; computed where ``p >= 0.5``.

    ``h + p (block(h) - h)`` for a token that is computed, ``h`` for one that is not: it is not in
    the layer's sequence at all, so no other token hears of it there, and it is back at the next
    layer. Each token is judged by itself; the most important ones of a sequence would be chosen by
    what comes later.

    The last ``n_scored`` layers are scored; those before compute every token.
    """

    streams = True

    def __init__(self, d_model: int, n_scored: int) -> None:
        super().__init__()
        self.scorers = nn.ModuleList(nn.Linear(d_model, 1) for _ in range(n_scored))
        for scorer in self.scorers:
            nn.init.zeros_(scorer.weight)  # type: ignore[arg-type]
            nn.init.constant_(scorer.bias, KEPT_AT_FIRST)  # type: ignore[arg-type]

    def forward(self, blocks: Sequence[Block], hidden_BND: Tensor, position_BN: Tensor) -> Deep:
        n_first = len(blocks) - len(self.scorers)
        layers_BN = torch.full_like(position_BN, n_first)
        probability_B, routing = hidden_BND.new_zeros(len(hidden_BND)), []
        for block in blocks[:n_first]:
            hidden_BND, routed = block(hidden_BND, position_BN, None)
            routing += [routed] if routed is not None else []
        for block, scorer in zip(blocks[n_first:], self.scorers, strict=True):
            score_BN = scorer(hidden_BND).squeeze(-1)
            computes_BN = ~(score_BN < 0)  # a NaN is computed, and comes out
            p_BN = score_BN.sigmoid()
            hidden_BND, said = self._computed(block, hidden_BND, position_BN, p_BN, computes_BN)
            routing += said
            layers_BN = layers_BN + computes_BN
            probability_B = probability_B + p_BN.mean(1)
        computed_BN = (layers_BN - n_first).to(hidden_BND.dtype)
        sparsity = Sparsity(
            probability_B / len(self.scorers), computed_BN.mean(1) / len(self.scorers)
        )
        return Deep(hidden_BND, layers_BN, None, tuple(routing), sparsity=sparsity)

    def _computed(
        self,
        block: Block,
        hidden_BND: Tensor,
        position_BN: Tensor,
        p_BN: Tensor,
        computes_BN: Tensor,
    ) -> tuple[Tensor, list[Routing]]:
        """Return all states behind the layer, and its routing if it has experts."""
        run = Running(hidden_BND, position_BN)
        if not computes_BN.all():
            # In training a layer runs in any case, on padding if need be: other processes may have
            # tokens for it, and wait for its gradient.
            run = run.without(~computes_BN, at_least=1 if self.training else 0)
        if run.hidden_BMD.shape[1] == 0:
            return hidden_BND, unused([block])
        out_BMD, routed = block(run.hidden_BMD, run.position_BM, run.there_BM)
        p_BM = p_BN if run.site_BM is None else p_BN.gather(1, run.site_BM)
        hidden_BND = run.add_to(hidden_BND, p_BM[..., None] * (out_BMD - run.hidden_BMD))
        return hidden_BND, [routed] if routed is not None else []
