"""The Birman-Schwinger operator's fast forms against its dense matrix. Letters as there."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bkray.errors import ConfigError
from bkray.ops import birman_schwinger as bs
from bkray.ops.chain import Tridiagonal

ENERGY = torch.tensor([-3.4, -2.0, -0.6, 1.0], dtype=torch.float64)
ETA = torch.tensor([0.02, 0.1, 0.5, 1.0], dtype=torch.float64)


def potential(n_sites: int, strength: float = 1.0, n_rows: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    u = torch.randn(n_rows, n_sites, len(ENERGY), dtype=torch.float64, generator=draw)
    return 3 * torch.tanh(strength * u / 3)


SIZES = [(1, 1.0), (2, 1.0), (3, 0.1), (60, 0.003), (60, 3.0), (200, 1.0)]


def singular_values(v: Tensor) -> Tensor:
    return torch.linalg.svdvals(bs.dense_operator(v, ENERGY, ETA))


def test_the_free_resolvent_is_that_of_a_chain_too_long_to_see_its_ends() -> None:
    n_far, n_seen = 3001, 80
    for head in range(len(ENERGY)):
        z = complex(ENERGY[head], ETA[head])
        side = np.ones(n_far - 1, dtype=complex)
        chain = Tridiagonal(side, np.full(n_far, -2 - z), side).factored()
        source = np.zeros(n_far, dtype=complex)
        source[n_far // 2] = 1
        expected = chain.solve(source)[n_far // 2 :][:n_seen]
        said = bs.resolvent_kernel(n_seen, ENERGY, ETA)[head, 0].numpy()
        assert np.abs(said - expected).max() <= 1e-10


@pytest.mark.parametrize(("n_sites", "strength"), SIZES)
def test_the_hilbert_schmidt_norm_is_that_of_the_matrix(n_sites: int, strength: float) -> None:
    v = potential(n_sites, strength)
    expected = singular_values(v).square().sum(-1).sqrt()
    said, bound = bs.schatten_s2(v, ENERGY, ETA), bs.schatten_s2_bound(v, ENERGY, ETA)
    assert (said / expected - 1).abs().max() <= 1e-12
    assert (said <= bound).all()
    if n_sites == 200:
        assert (said >= 0.3 * bound).all(), "nor far below"


@pytest.mark.parametrize(("n_sites", "strength"), SIZES)
def test_the_trace_norm_is_that_of_the_matrix_and_below_its_bound(
    n_sites: int, strength: float
) -> None:
    v = potential(n_sites, strength)
    expected = singular_values(v).sum(-1)
    said = bs.exact_s1(v, ENERGY, ETA)
    assert (said / expected - 1).abs().max() <= 1e-12
    assert (bs.exact_s1(v.float(), ENERGY, ETA) / expected - 1).abs().max() <= 1e-5
    assert (said <= bs.schatten_s1_bound(v, ENERGY, ETA)).all()
    if n_sites == 200:
        assert (said >= 0.8 * bs.schatten_s1_bound(v, ENERGY, ETA)).all(), "nor far below"


def test_the_density_is_the_mean_over_the_band() -> None:
    n_points = 200_000
    k = torch.arange(n_points, dtype=torch.float64)[:, None] * (2 * math.pi / n_points)
    z = torch.complex(ENERGY, ETA)
    expected = (1 / (2 * torch.cos(k) - 2 - z).abs()).mean(0)
    assert (bs.density(ENERGY, ETA) / expected - 1).abs().max() <= 1e-10


@pytest.mark.parametrize(("n_sites", "strength"), SIZES)
def test_the_condition_number_is_that_of_the_matrix(n_sites: int, strength: float) -> None:
    v = potential(n_sites, strength)
    whole = torch.eye(n_sites) + bs.dense_operator(v, ENERGY, ETA)
    expected = torch.linalg.cond(whole)
    said = bs.condition_number(v, ENERGY, ETA)
    assert (said <= expected * (1 + 1e-10)).all(), "Lanczos comes from below"
    assert (said >= expected * (1 - 5e-3)).all()


def test_a_weak_potential_is_within_the_bound_of_its_norm() -> None:
    v = potential(60, 0.003)
    norm = bs.schatten_s2(v, ENERGY, ETA)
    assert (norm < 1).any(), "else the bound says nothing here"
    assert (bs.condition_number(v, ENERGY, ETA) <= bs.condition_bound(norm)).all()
    assert bs.condition_bound(torch.tensor([0.5, 1.0, 2.0])).tolist() == [3.0, math.inf, math.inf]
    assert bs.condition_bound(torch.tensor(torch.nan)).isnan()


def test_the_determinant_of_one_plus_k_is_the_ratio_of_those_of_the_chains() -> None:
    v = potential(50)
    whole = torch.eye(50) + bs.dense_operator(v, ENERGY, ETA)
    inverse_free = torch.linalg.inv(bs.resolvent_kernel(50, ENERGY, ETA))
    with_v = inverse_free + torch.diag_embed(v.transpose(1, 2))
    expected = (
        torch.linalg.slogdet(with_v).logabsdet - torch.linalg.slogdet(inverse_free).logabsdet
    )
    assert (torch.linalg.slogdet(whole).logabsdet - expected).abs().max() <= 1e-9


def test_no_potential_is_no_operator() -> None:
    none = torch.zeros(1, 30, len(ENERGY), dtype=torch.float64)
    for norm in (bs.schatten_s2, bs.exact_s1, bs.schatten_s1_bound):
        assert not norm(none, ENERGY, ETA).any()
    assert (bs.condition_number(none, ENERGY, ETA) - 1).abs().max() <= 1e-14


@pytest.mark.parametrize(
    "number", [bs.schatten_s2, bs.exact_s1, bs.schatten_s1_bound, bs.condition_number]
)
def test_a_nan_is_a_nan_in_its_row_and_head_alone(number: object) -> None:
    v = potential(20)
    v[1, 7, 2] = torch.nan
    said = number(v, ENERGY, ETA)  # type: ignore[operator]
    expected = torch.zeros_like(said, dtype=torch.bool)
    expected[1, 2] = True
    assert torch.equal(said.isnan(), expected)


@pytest.mark.parametrize("n_sites", [1, 2, 3, 17])
def test_a_tridiagonal_system_is_solved_as_its_dense_form(n_sites: int) -> None:
    draw = np.random.default_rng(n_sites)
    lower, upper = draw.standard_normal((2, n_sites - 1))
    diagonal = draw.standard_normal(n_sites) + 0.1j
    chain = Tridiagonal(lower.astype(complex), diagonal, upper.astype(complex))
    dense = np.diag(diagonal) + np.diag(lower, -1) + np.diag(upper, 1)
    b = draw.standard_normal((n_sites, 2)) + 0j
    assert np.abs(chain.times(b) - dense @ b).max() <= 1e-12
    assert np.abs(dense @ chain.factored().solve(b) - b).max() <= 1e-10
    assert (
        np.abs(dense.conj().T @ chain.factored().solve(b[:, 0], adjoint=True) - b[:, 0]).max()
        <= 1e-10
    )


def test_a_singular_chain_is_refused() -> None:
    side = np.zeros(3)
    with pytest.raises(ConfigError, match=r"the chain is singular at site 0: shift its energy"):
        Tridiagonal(side, np.zeros(4), side).factored()
