"""Feed-forward part of a block: one network, or a dropless mixture of experts.

Letters: T tokens (batch and sites flattened), D width, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    """What one layer's router did, summed over tokens, so that parts of a batch add up exactly."""

    count_E: Tensor
    """Tokens sent to each expert."""
    probability_E: Tensor
    """Sum over tokens of the router's probability; carries the gradient of the balance term."""


class FeedForward(nn.Module):
    """``D -> hidden -> D`` with GELU."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden)
        self.down = nn.Linear(d_hidden, d_model)

    def forward(self, x_TD: Tensor) -> Tensor:
        out: Tensor = self.down(torch.nn.functional.gelu(self.up(x_TD)))
        return out


class Experts(nn.Module):
    """Send each token to its ``top_k`` most probable experts and add what they say.

    Per token and without capacity limit, so no token depends on another one's choice (which would
    leak the future). An expert's answer is weighted by the router's probability, which is how the
    router gets a gradient also for ``top_k = 1``.
    """

    def __init__(self, d_model: int, d_hidden: int, n_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(d_model, d_hidden) for _ in range(n_experts))

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Routing]:
        probability_TE = self.router(x_TD).softmax(-1)
        gate_Tk, expert_Tk = probability_TE.topk(self.top_k, dim=-1)
        # Sorting by expert makes each expert's tokens one contiguous run: one batched call each.
        order = expert_Tk.flatten().argsort(stable=True)
        token = order // self.top_k
        count_E = expert_Tk.flatten().bincount(minlength=len(self.experts))
        runs = torch.split(x_TD[token], count_E.tolist())
        said = torch.cat([expert(run) for expert, run in zip(self.experts, runs, strict=True)])
        weighted = said * gate_Tk.flatten()[order, None].to(said.dtype)
        out_TD = torch.zeros_like(weighted[:1]).expand(len(x_TD), -1).index_add(0, token, weighted)
        return out_TD, Routing(count_E, probability_TE.sum(0))

    def unused(self) -> Routing:
        """Return the routing of a layer that no token reached."""
        none_E = self.router.weight.new_zeros(len(self.experts))
        return Routing(none_E.long(), none_E)
