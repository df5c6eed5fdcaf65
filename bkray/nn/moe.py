"""Feed-forward part of a block: one network, or a dropless mixture of experts.

Letters: T tokens (batch and sites flattened), D width, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.nn.routers import ScatteringRouter, most_probable


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
    """Send each token to the experts that its router names and add what they say.

    Per token and without capacity limit, so no token depends on another one's choice (which would
    leak the future). A learned router names the ``top_k`` most probable ones; an expert's answer
    is weighted by that probability, which is how the router gets a gradient also for
    ``top_k = 1``. A ``ScatteringRouter`` goes by what the mixer says of each token.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        n_experts: int,
        top_k: int | None,
        router: ScatteringRouter | None = None,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = router if router is not None else nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(d_model, d_hidden) for _ in range(n_experts))

    def forward(self, x_TD: Tensor, scattered_T2: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Return what the experts say and where the tokens went.

        ``scattered`` is a scattering router's: phase in radians and ``|g| eta`` of each token.
        """
        if isinstance(self.router, ScatteringRouter):
            assert scattered_T2 is not None
            routes = self.router(*scattered_T2.unbind(-1))
        else:
            assert self.top_k is not None
            routes = most_probable(self.router(x_TD), self.top_k)
        # Sorting by expert makes each expert's tokens one contiguous run: one batched call each.
        order = routes.expert_P.argsort(stable=True)
        token = routes.token_P[order]
        count_E = routes.expert_P.bincount(minlength=len(self.experts))
        runs = torch.split(x_TD[token], count_E.tolist())
        said = torch.cat([expert(run) for expert, run in zip(self.experts, runs, strict=True)])
        weighted = said * routes.weight_P[order, None].to(said.dtype)
        out_TD = torch.zeros_like(weighted[:1]).expand(len(x_TD), -1).index_add(0, token, weighted)
        return out_TD, Routing(count_E, routes.probability_E)

    def unused(self) -> Routing:
        """Return the routing of a layer that no token reached."""
        none_E = next(self.experts.parameters()).new_zeros(len(self.experts))
        return Routing(none_E.long(), none_E)
