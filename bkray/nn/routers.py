"""Who is sent to which expert. Letters: T tokens, E experts, k experts per token, P pairs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Routes(NamedTuple):
    """Pairs of a token and an expert that is asked about it."""

    token_P: Tensor
    expert_P: Tensor
    weight_P: Tensor
    """With which the expert's answer is added."""
    probability_E: Tensor
    """Sum over tokens of what the router gives each expert; with a gradient if it learns."""


def most_probable(logits_TE: Tensor, top_k: int) -> Routes:
    """Return each token's ``top_k`` most probable experts, weighted by their probability."""
    probability_TE = logits_TE.softmax(-1)
    gate_Tk, expert_Tk = probability_TE.topk(top_k, dim=-1)
    token_P = torch.arange(gate_Tk.numel(), device=gate_Tk.device) // top_k
    return Routes(token_P, expert_Tk.flatten(), gate_Tk.flatten(), probability_TE.sum(0))


class ScatteringRouter(nn.Module):
    """The expert is the bin that the phase of a head's left Green's function falls into.

    No parameters, and nothing to learn: ``g_t`` depends on sites ``0..t`` alone, so the choice is
    causal. Near a resonance, where ``|g| eta`` is above ``resonance`` (its limit is 1), the token
    asks the next nearest bin too, each for a half of the answer.

    The bins are fixed: of equal width at first, and from ``calibrated`` on quantiles of the phases
    that were seen then. They are a buffer, so a checkpoint has them.
    """

    edges: Tensor

    def __init__(self, n_experts: int, head: int, resonance: float) -> None:
        super().__init__()
        self.n_experts, self.head, self.resonance = n_experts, head, resonance
        self.calibrates = False
        self.register_buffer("edges", torch.linspace(0, math.pi, n_experts + 1)[1:-1].clone())

    @torch.no_grad()
    def forward(self, phase_T: Tensor, resonance_T: Tensor) -> Routes:
        """Return one or two experts per token; phases are in radians, from 0 to pi."""
        if self.calibrates and len(phase_T):
            share_E = torch.arange(1, self.n_experts, device=phase_T.device) / self.n_experts
            self.edges.copy_(torch.quantile(phase_T.to(self.edges.dtype), share_E.to(self.edges)))
        phase_T = phase_T.to(self.edges.dtype).contiguous()
        expert_T = torch.searchsorted(self.edges, phase_T)
        is_near_T = resonance_T > self.resonance
        token_T = torch.arange(len(phase_T), device=phase_T.device)
        weight_T = torch.where(is_near_T, 0.5, 1.0).to(resonance_T.dtype)
        expert_P = torch.cat([expert_T, self._neighbour(phase_T, expert_T)[is_near_T]])
        weight_P = torch.cat([weight_T, weight_T[is_near_T]])
        asked_E = weight_P.new_zeros(self.n_experts).index_add_(0, expert_P, weight_P)
        return Routes(torch.cat([token_T, token_T[is_near_T]]), expert_P, weight_P, asked_E)

    def _neighbour(self, phase_T: Tensor, expert_T: Tensor) -> Tensor:
        """Return the bin on the side whose edge is nearer; phases end at 0 and pi."""
        far = self.edges.new_tensor([math.inf])
        edges = torch.cat([-far, self.edges, far])
        is_lower_T = phase_T - edges[expert_T] < edges[expert_T + 1] - phase_T
        return expert_T + 1 - 2 * is_lower_T.long()


@contextmanager
def calibrated(model: nn.Module) -> Iterator[None]:
    """Let every scattering router set its bins by the next tokens that it sees, layer by layer."""
    routers = [part for part in model.modules() if isinstance(part, ScatteringRouter)]
    for router in routers:
        router.calibrates = True
    try:
        yield
    finally:
        for router in routers:
            router.calibrates = False
