"""Inputs, gradients and errors of the selective scan, for the tests of its forms."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bkray.ops.selective_scan import selective_scan

Shape = tuple[int, int, int, int]
"""B, N, D, S."""


def draw(
    B: int, N: int, D: int, S: int, dtype: torch.dtype = torch.float64, stretch: float = 1.0
) -> list[Tensor]:
    """x, dt, rate, into, out, skip, state: the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(N)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dt_BND = stretch * softplus(normal(B, N, D) - 2)
    rate_SD = -torch.rand(S, D, generator=generator) * torch.arange(1, S + 1)[:, None]
    sites = (normal(B, N, S), normal(B, N, S))
    drawn = [normal(B, N, D), dt_BND, rate_SD, *sites, normal(D), normal(B, S, D)]
    return [t.to(dtype) for t in drawn]


def with_gradients(inputs: list[Tensor], form: str) -> list[Tensor]:
    """``y`` and the last state, then the gradients of all inputs for fixed random weights."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    said = selective_scan(*leaves, form=form)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in said]
    grads = torch.autograd.grad(said, leaves, weights)
    return [*(t.detach() for t in said), *grads]


def error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    # What is left of a state after 1e6 steps may be 1e-200, which float32 does not know.
    return float(
        (got.cpu().double() - expected.cpu()).abs().max() / expected.abs().max().clamp(min=1e-30)
    )
