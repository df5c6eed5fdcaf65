"""The low-rank branch beside the resolvent: the causal part of ``U V^T``.

Letters: B batch, N sites, D width, R rank, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bkray.ops.semiseparable import causal_low_rank

RAW_DECAY = 4.0
"""``decay = sigmoid`` of it: what lies 55 sites back counts a third of what is new."""


class LowRankBranch(nn.Module):
    """``y_t = scale U_t . sum_{j <= t} decay^(t - j) V_j x_j``.

    ``U_t`` and ``V_t`` are the token's, of length 1, and ``scale = sqrt(R (1 - decay^2))`` gives
    ``y`` about the power of ``x`` where they have nothing to do with each other. However long the
    sequence, ``|y|`` is at most ``scale / (1 - decay)`` times the largest ``|x|`` so far;
    ``decay`` is learned.
    """

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Linear(d_model, rank, bias=False)
        self.right = nn.Linear(d_model, rank, bias=False)
        self.raw_decay = nn.Parameter(torch.tensor([RAW_DECAY]))

    def forward(
        self,
        hidden_BND: Tensor,
        x_BNC: Tensor,
        there_BN: Tensor | None = None,
        state_BRC: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the branch at every site, (B, N, C), and the state to go on from, (B, R, C).

        The sum stays in float32 under autocast: bf16 cannot tell a decay of 0.999 from 1.
        """
        precise = torch.promote_types(hidden_BND.dtype, torch.float32)
        with torch.autocast(hidden_BND.device.type, enabled=False):
            decay = self.raw_decay.to(precise).sigmoid()
            seen_BND = hidden_BND.to(precise)
            u_BNR = normalize(seen_BND @ self.left.weight.to(precise).mT, dim=-1)
            v_BNR = normalize(seen_BND @ self.right.weight.to(precise).mT, dim=-1)
            scale = (u_BNR.shape[-1] * (1 - decay**2)).sqrt()
            fresh_BNC = scale * x_BNC.to(precise)
            y_BNC, state_BRC = causal_low_rank(u_BNR, v_BNR, fresh_BNC, decay, there_BN, state_BRC)
        return y_BNC.to(hidden_BND.dtype), state_BRC
