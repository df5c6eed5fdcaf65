"""Inputs, gradients and errors of the causal resolvent, for the tests of its forms."""

import torch
from torch import Tensor

from bkray.ops.tridiagonal import causal_resolvent

Shape = tuple[int, int, int, int, float]
"""B, N, K, H, smallest eta."""


def draw(
    B: int, N: int, K: int, H: int, eta: float, dtype: torch.dtype, seed: int = 0
) -> list[Tensor]:
    """h, x, energy, eta, state: the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    h_BNH, x_BNKH = normal(B, N, H) - 2, normal(B, N, K, H)
    energy_H, eta_H = torch.linspace(-3.5, -0.5, H), torch.linspace(eta, max(1.0, eta), H)
    state_BFH = causal_resolvent(h_BNH, x_BNKH, energy_H, eta_H, form="reference")[:, N // 2]
    return [t.to(dtype) for t in (h_BNH, x_BNKH, energy_H, eta_H, state_BFH)]


def with_gradients(inputs: list[Tensor], form: str) -> list[Tensor]:
    """Features, then the gradients of all five inputs for fixed random weights of the features."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    features = causal_resolvent(*leaves, form=form)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
    grads = torch.autograd.grad(features, leaves, weights.to(features))
    return [features.detach(), *grads]


def error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over largest magnitude."""
    assert got.shape == expected.shape
    if got.numel() == 0:
        return 0.0
    return float((got.cpu().double() - expected.cpu()).abs().max() / expected.abs().max())
