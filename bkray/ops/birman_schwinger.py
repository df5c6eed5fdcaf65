"""The Birman-Schwinger operator of a potential on the infinite chain: norms and conditioning.

``K(z) = |V|^1/2 R0(z) V^1/2`` with ``V^1/2 = sgn(V) |V|^1/2`` and ``R0`` the resolvent of
``tridiag(1, -2, 1)`` on all integers; ``I + K`` is to ``H0 + V - z`` what 1 is to ``H0 - z``:
the ratio of the two determinants is ``det(I + K)``.

Letters: B rows, N sites, H heads, each with its ``z = E + i eta``, eta above 0. Everything runs on
the CPU in float64 (``exact_s1`` in the dtype of ``v``), whatever the inputs, and outside autograd.
A NaN in ``v`` is a NaN in every number of its row and head.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

from bkray.ops.chain import Array, Factored, Tridiagonal

EXACT_SITES = 512
"""Longest chain whose trace norm is taken from all its singular values."""

ROUNDS = 16
"""Of Lanczos per norm: 12 are right to 1% on chains of 40 to 1,500 sites, 30 to 4e-8."""

AGM_ROUNDS = 8
"""The arithmetic-geometric mean doubles its digits each round."""


def resolvent_kernel(n_sites: int, energy_H: Tensor, eta_H: Tensor) -> Tensor:
    """Return ``R0(u, v) = e^{i theta |u - v|} / (2 i sin theta)`` densely, (H, N, N) complex.

    ``z + 2 = 2 cos(theta)`` with ``Im theta > 0``, so that it falls off on both sides.
    """
    theta_H11 = _theta(energy_H, eta_H)[:, None, None]
    site_N = torch.arange(n_sites)
    distance_NN = (site_N[:, None] - site_N).abs()
    return torch.exp(1j * theta_H11 * distance_NN) / (2j * torch.sin(theta_H11))


def dense_operator(v_BNH: Tensor, energy_H: Tensor, eta_H: Tensor) -> Tensor:
    """Return ``K`` itself, (B, H, N, N) complex: the reference of everything below."""
    v_BHN = v_BNH.detach().cpu().double().transpose(1, 2)
    root_BHN = v_BHN.abs().sqrt()
    kernel_HNN = resolvent_kernel(v_BNH.shape[1], energy_H, eta_H)
    return root_BHN[..., None] * kernel_HNN * (v_BHN.sign() * root_BHN)[..., None, :]


def schatten_s2(v_BNH: Tensor, energy_H: Tensor, eta_H: Tensor) -> Tensor:
    """Return the Hilbert-Schmidt norm of ``K``, (B, H), in O(N).

    ``sum_uv |V_u| |V_v| |R0(u, v)|^2`` is the diagonal plus twice the part left of it, where
    ``s_u = q (s_{u-1} + |V_{u-1}|)`` with ``q = e^{-2 Im theta}``.
    """
    strength_BNH = np.abs(_on_host(v_BNH))
    theta_H = _theta(energy_H, eta_H)
    decay_H = torch.exp(-2 * theta_H.imag).numpy()
    height_H = (1 / (2 * torch.sin(theta_H)).abs().square()).numpy()
    n_sites = strength_BNH.shape[1]
    square_BH = np.empty((len(strength_BNH), len(decay_H)))
    for head, decay in enumerate(decay_H):
        ones, none = np.ones(n_sites), np.zeros(n_sites - 1)
        recurrence = Tridiagonal(np.full(n_sites - 1, -decay), ones, none).factored()
        strength_NB = strength_BNH[:, :, head].T
        left_NB = recurrence.solve(strength_NB) - strength_NB  # that of the sites before alone
        square_BH[:, head] = (strength_NB * (strength_NB + 2 * left_NB)).sum(0)
    return torch.from_numpy(np.sqrt(height_H * square_BH))


def schatten_s2_bound(v_BNH: Tensor, energy_H: Tensor, eta_H: Tensor) -> Tensor:
    """Return what the Hilbert-Schmidt norm of ``K`` is at most, (B, H).

    ``||V||_2`` times the root of ``sum_n |R0(0, n)|^2`` (Young's inequality).
    """
    theta_H = _theta(energy_H, eta_H)
    decay_H = torch.exp(-2 * theta_H.imag)
    reach_H = (1 + decay_H) / (1 - decay_H) / (2 * torch.sin(theta_H)).abs().square()
    return torch.from_numpy(np.linalg.norm(_on_host(v_BNH), axis=1)) * reach_H.sqrt()


def schatten_s1_bound(v_BNH: Tensor, energy_H: Tensor, eta_H: Tensor) -> Tensor:
    """Return what the trace norm of ``K`` is at most, (B, H): ``||V||_1`` times ``r``."""
    return torch.from_numpy(np.abs(_on_host(v_BNH)).sum(1)) * density(energy_H, eta_H)


def density(energy_H: Tensor, eta_H: Tensor) -> Tensor:
    """Return ``r``, the diagonal of ``|R0|``: the mean over k of ``1 / |2 cos k - 2 - z|``.

    A complete elliptic integral, by the arithmetic-geometric mean (Gauss 1799).
    """
    w_H = torch.complex(energy_H.detach().cpu().double(), eta_H.detach().cpu().double()) + 2
    p_H, q_H = 2 - w_H, 2 + w_H
    # Half the chord between their directions is sin of half the angle, without cancellation.
    mean_H, other_H = torch.ones_like(w_H.real), (p_H / p_H.abs() - q_H / q_H.abs()).abs() / 2
    for _ in range(AGM_ROUNDS):
        mean_H, other_H = (mean_H + other_H) / 2, (mean_H * other_H).sqrt()
    return 1 / ((p_H * q_H).abs().sqrt() * mean_H)


def exact_s1(v_BNH: Tensor, energy_H: Tensor, eta_H: Tensor) -> Tensor:
    """Return the trace norm of ``K``, (B, H), from all singular values: O(N^3).

    In float32 where ``v`` is; its sum is then right to about 1e-5.
    """
    operator = dense_operator(v_BNH, energy_H, eta_H)
    if v_BNH.dtype != torch.float64:
        operator = operator.to(torch.complex64)
    is_finite_BH = operator.isfinite().all(-1).all(-1)
    # LAPACK refuses what is not finite; it is looked for here and said again behind.
    looked_at = operator.where(is_finite_BH[..., None, None], 0)
    trace_BH = torch.linalg.svdvals(looked_at).double().sum(-1)
    return torch.where(is_finite_BH, trace_BH, math.nan)


def condition_number(v_BNH: Tensor, energy_H: Tensor, eta_H: Tensor) -> Tensor:
    """Return ``||I + K|| ||(I + K)^-1||``, (B, H), in O(N), from below.

    The restriction of ``R0`` to N sites is the inverse of a tridiagonal ``T``: ``tridiag(1, -2 -
    z, 1)`` with ``e^{i theta}`` added at both ends. So ``K x`` is a solve with ``T``, and by
    Woodbury ``(I + K)^-1 = I - |V|^1/2 (T + V)^-1 V^1/2`` one with ``T + V``. The norms are the
    largest singular values by Lanczos on ``A* A`` from a fixed start, ``ROUNDS`` of it at most.
    """
    potential_BNH = _on_host(v_BNH)
    condition_BH = np.empty((len(v_BNH), v_BNH.shape[2]))
    for head, theta in enumerate(_theta(energy_H, eta_H).numpy()):
        free = _free_chain(v_BNH.shape[1], theta)
        free_factored = free.factored()
        for row, v_N in enumerate(potential_BNH[:, :, head]):
            left_N = np.sqrt(np.abs(v_N))
            right_N = np.sign(v_N) * left_N
            whole = free._replace(diagonal=free.diagonal + v_N).factored()
            condition_BH[row, head] = _norm(_Shifted(free_factored, left_N, right_N, 1)) * _norm(
                _Shifted(whole, left_N, right_N, -1)
            )
    return torch.from_numpy(condition_BH)


def condition_bound(norm: Tensor) -> Tensor:
    """Return ``(1 + n) / (1 - n)``, what the condition number of ``I + K`` is at most.

    ``n`` is the operator norm of ``K`` or more, such as its Schatten norms; infinite from 1 on.
    """
    bound = (1 + norm) / (1 - norm)
    return torch.where(norm >= 1, math.inf, bound)


def _theta(energy_H: Tensor, eta_H: Tensor) -> Tensor:
    z_H = torch.complex(energy_H.detach().cpu().double(), eta_H.detach().cpu().double())
    theta_H = torch.acos((z_H + 2) / 2)
    return torch.where(theta_H.imag > 0, theta_H, -theta_H)


def _on_host(v_BNH: Tensor) -> Array:
    return v_BNH.detach().cpu().double().numpy()


def _free_chain(n_sites: int, theta: complex) -> Tridiagonal:
    """Return the inverse of ``R0`` on ``n_sites``: what lies outside acts at the ends alone."""
    side = np.ones(n_sites - 1, dtype=complex)
    diagonal = np.full(n_sites, -2 * np.cos(theta))
    diagonal[0] += np.exp(1j * theta)
    diagonal[-1] += np.exp(1j * theta)
    return Tridiagonal(side, diagonal, side)


class _Shifted(NamedTuple):
    """``1 + sign * left chain^-1 right``."""

    chain: Factored
    left_N: Array
    right_N: Array
    sign: int

    def times(self, x_N: Array) -> Array:
        solved_N = self.chain.solve(self.right_N * x_N)
        return x_N + self.sign * self.left_N * solved_N  # type: ignore[no-any-return]

    def adjoint_times(self, x_N: Array) -> Array:
        solved_N = self.chain.solve(self.left_N * x_N, adjoint=True)
        return x_N + self.sign * self.right_N * solved_N  # type: ignore[no-any-return]


def _norm(operator: _Shifted) -> float:
    """Return the largest singular value, by Lanczos on ``A* A``; NaN where a NaN comes out."""
    n_sites = len(operator.left_N)
    start = np.random.default_rng(0).standard_normal(n_sites).astype(complex)
    vector, before, coupling = start / np.linalg.norm(start), np.zeros_like(start), 0.0
    diagonal: list[float] = []
    couplings: list[float] = []
    for _ in range(min(ROUNDS, n_sites)):
        image = operator.adjoint_times(operator.times(vector)) - coupling * before
        diagonal.append(float(np.vdot(vector, image).real))
        image = image - diagonal[-1] * vector
        coupling = float(np.linalg.norm(image))
        couplings.append(coupling)
        if not coupling > np.finfo(float).eps * diagonal[-1]:  # all was seen, or a NaN
            break
        before, vector = vector, image / coupling
    if not np.isfinite(diagonal).all():
        return math.nan
    return math.sqrt(eigvalsh_tridiagonal(diagonal, couplings[: len(diagonal) - 1])[-1])
