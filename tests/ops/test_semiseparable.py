"""Semiseparable matrices and their causal part against dense forms. Letters as there."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bkray.ops.chain import Tridiagonal
from bkray.ops.semiseparable import CHUNK, Semiseparable, causal_low_rank


def matrix(n_sites: int, rank: int) -> tuple[Semiseparable, np.ndarray]:
    draw = np.random.default_rng(n_sites + rank)
    side = np.ones(n_sites - 1)
    diagonal = draw.uniform(-4, 0, n_sites) - (-2 + 0.1j)
    u, v = draw.standard_normal((2, n_sites, rank))
    chain = Tridiagonal(side.astype(complex), diagonal, side.astype(complex))
    dense = np.diag(diagonal) + np.diag(side, 1) + np.diag(side, -1) + u @ v.T
    return Semiseparable(chain, u, v), dense


@pytest.mark.parametrize(("n_sites", "rank"), [(1, 1), (2, 2), (40, 1), (40, 16), (300, 5)])
def test_multiplies_and_solves_as_its_dense_form(n_sites: int, rank: int) -> None:
    fast, dense = matrix(n_sites, rank)
    draw = np.random.default_rng(0)
    for shape in ((n_sites,), (n_sites, 3)):
        b = draw.standard_normal(shape)
        assert np.abs(fast.times(b) - dense @ b).max() <= 1e-10
        solved = fast.factored().solve(b)
        expected = np.linalg.solve(dense, b)
        assert np.abs(solved - expected).max() <= 1e-9 * np.abs(expected).max()


def parts(n_sites: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sizes = (4, 4, 5)
    u, v, x = (torch.randn(2, n_sites, n, dtype=torch.float64, generator=draw) for n in sizes)
    return u, v, x


def dense_form(u: Tensor, v: Tensor, x: Tensor, decay: Tensor) -> Tensor:
    site = torch.arange(u.shape[1])
    age = (site[:, None] - site).clamp(min=0)
    return (u @ v.mT * decay**age).tril() @ x


@pytest.mark.parametrize("n_sites", [1, 5, CHUNK, CHUNK + 1, 3 * CHUNK - 7])
def test_the_causal_part_is_the_lower_triangle_with_its_gradients(n_sites: int) -> None:
    inputs = [*parts(n_sites), torch.tensor([0.9], dtype=torch.float64)]
    for value in inputs:
        value.requires_grad_()
    said, _ = causal_low_rank(*inputs)
    expected = dense_form(*inputs)
    assert (said - expected).abs().max() <= 1e-12
    weight = torch.randn(said.shape, dtype=torch.float64)
    fast = torch.autograd.grad((said * weight).sum(), inputs)
    slow = torch.autograd.grad((expected * weight).sum(), inputs)
    for one, other in zip(fast, slow, strict=True):
        assert (one - other).abs().max() <= 1e-10


@pytest.mark.parametrize("size", [1, 7, CHUNK, 100])
def test_chunks_with_a_carried_state_say_what_the_whole_says(size: int) -> None:
    u, v, x = parts(230)
    decay, state = torch.tensor([0.97], dtype=torch.float64), None
    whole, at_the_end = causal_low_rank(u, v, x, decay)
    said = []
    for chunk in zip(u.split(size, 1), v.split(size, 1), x.split(size, 1), strict=True):
        y, state = causal_low_rank(*chunk, decay, state_BRC=state)
        said.append(y)
    assert (torch.cat(said, 1) - whole).abs().max() <= 1e-12
    assert state is not None
    assert (state - at_the_end).abs().max() <= 1e-12


@pytest.mark.parametrize("n_sites", [9, 2 * CHUNK + 5])
def test_padding_behind_a_row_is_not_in_its_state(n_sites: int) -> None:
    u, v, x = parts(n_sites)
    decay = torch.tensor([0.9], dtype=torch.float64)
    _, before = causal_low_rank(*parts(5, seed=1), decay)
    for n_own in (0, 3, n_sites - 1):
        there = torch.ones(2, n_sites, dtype=torch.bool)
        there[0, n_own:] = False
        padded = x.masked_fill(~there[..., None], torch.nan)
        _, state = causal_low_rank(u, v, padded, decay, there, before)
        own = (part[:1, :n_own] for part in (u, v, x))
        expected = causal_low_rank(*own, decay, state_BRC=before[:1])[1] if n_own else before[:1]
        assert (state[0] - expected[0]).abs().max() <= 1e-12


def test_does_not_grow_with_the_sequence() -> None:
    """All sites alike are the worst case: the bound is reached, and kept."""
    decay = torch.tensor([0.99], dtype=torch.float64)
    ones = torch.ones(1, 20_000, 1, dtype=torch.float64)
    said, _ = causal_low_rank(ones, ones, ones, decay)
    bound = 1 / (1 - decay)
    assert (said <= bound * (1 + 1e-12)).all()
    assert (said[0, 5_000:] >= 0.999 * bound).all()
