"""The causal resolvent in whole-tensor operations of torch, for any device without a kernel.

Shapes: B rows, N sites, K value channels, H heads, F = 2 (1 + K) feature planes.
Maps are composed in pairs of neighbours, the half as long sequence of pairs is solved the same
way, and every other site follows from its left neighbour: O(N) work in O(log N) operations,
at any ``eta``.
"""

import torch
from torch import Tensor

SECOND, LATER = slice(1, None, 2), slice(2, None, 2)
Moebius = tuple[Tensor, Tensor, Tensor, Tensor]
"""``(a, b, c, d)``, each (B, N, H): site t maps ``g`` to ``(a g + b) / (c g + d)``."""


def forward(
    h_BNH: Tensor, x_BNKH: Tensor, energy_H: Tensor, eta_H: Tensor, state_BFH: Tensor
) -> Tensor:
    """Return the features, as ``tridiagonal.causal_resolvent`` documents them."""
    state_BPH = _complex(state_BFH)
    gap_BNH = torch.complex(h_BNH - energy_H, -eta_H.expand_as(h_BNH))
    gap_BNH[:, 0] -= state_BPH[:, 0]  # the site before acts on the first one alone
    g_BNH = _continued_fraction(gap_BNH)
    pull_BNKH = x_BNKH.to(g_BNH.dtype)
    pull_BNKH[:, 0] -= state_BPH[:, 1:]
    g_BN1H = g_BNH.unsqueeze(2)
    y_BNKH = _linear_scan(-g_BN1H, g_BN1H * pull_BNKH)
    return _features(torch.cat((g_BN1H, y_BNKH), 2))


def backward(features_BNFH: Tensor, grad_BNFH: Tensor, eta_H: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of h, x, energy, eta and state: the same scan, from the right."""
    values_BNPH, grad_BNPH = _complex(features_BNFH.flip(1)), _complex(grad_BNFH.flip(1))
    g_BN1H = values_BNPH[:, :, :1].conj().resolve_conj()
    u_BNKH = _linear_scan(-g_BN1H, g_BN1H * grad_BNPH[:, :, 1:])
    pull_BN1H = (values_BNPH[:, :, 1:].conj() * u_BNKH).sum(2, keepdim=True)
    square_BN1H = g_BN1H * g_BN1H
    v_BN1H = _linear_scan(square_BN1H, pull_BN1H + square_BN1H * grad_BNPH[:, :, :1])
    dz_H = v_BN1H.sum((0, 1, 2))
    state_BFH = _features(torch.cat((v_BN1H, -u_BNKH), 2)[:, -1])
    return -v_BN1H[:, :, 0].real.flip(1), u_BNKH.real.flip(1), dz_H.real, dz_H.imag, state_BFH


def _complex(planes: Tensor) -> Tensor:
    """(..., F, H) real features as (..., 1 + K, H) complex numbers."""
    half = planes.shape[-2] // 2 - 1
    real = torch.cat((planes[..., :1, :], planes[..., 2 : 2 + half, :]), -2)
    imag = torch.cat((planes[..., 1:2, :], planes[..., 2 + half :, :]), -2)
    return torch.complex(real, imag)


def _features(values: Tensor) -> Tensor:
    """The inverse of ``_complex``."""
    g, y = values[..., :1, :], values[..., 1:, :]
    return torch.cat((g.real, g.imag, y.real, y.imag), -2)


def _continued_fraction(gap_BNH: Tensor) -> Tensor:
    """``g_t = 1 / (gap_t - g_{t-1})`` from nothing on the left.

    Composed maps lose digits where a part of the chain resonates and the whole does not. One
    Newton step, a linear scan of the residuals, gives the accuracy of the plain loop back.
    """
    n_pairs = gap_BNH.shape[1] // 2
    first, second = gap_BNH[:, : 2 * n_pairs : 2], gap_BNH[:, SECOND]
    g_BNH = torch.empty_like(gap_BNH)
    if n_pairs > 0:
        g_BNH[:, SECOND] = _moebius_scan(
            (-torch.ones_like(first), first, -second, second * first - 1)
        )
    g_BNH[:, :1] = 1 / gap_BNH[:, :1]
    g_BNH[:, LATER] = 1 / (gap_BNH[:, LATER] - _before_later(g_BNH))
    target_BNH = torch.cat((g_BNH[:, :1], 1 / (gap_BNH[:, 1:] - g_BNH[:, :-1])), 1)
    return g_BNH + _linear_scan(target_BNH * target_BNH, target_BNH - g_BNH)


def _moebius_scan(maps: Moebius) -> Tensor:
    """What the maps of sites ``0..t`` make of 0, for every t."""
    a, b, c, d = maps
    n_pairs = a.shape[1] // 2
    if n_pairs == 0:
        return b / d
    a1, b1, c1, d1 = (entry[:, : 2 * n_pairs : 2] for entry in maps)
    a2, b2, c2, d2 = (entry[:, SECOND] for entry in maps)
    pair = (a2 * a1 + b2 * c1, a2 * b1 + b2 * d1, c2 * a1 + d2 * c1, c2 * b1 + d2 * d1)
    scale = 1 / (pair[2].abs() + pair[3].abs())  # the same map, and the entries cannot overflow
    scanned = torch.empty_like(a)
    scanned[:, SECOND] = _moebius_scan(tuple(entry * scale for entry in pair))  # type: ignore[arg-type]
    scanned[:, :1] = b[:, :1] / d[:, :1]
    before = _before_later(scanned)
    scanned[:, LATER] = (a[:, LATER] * before + b[:, LATER]) / (c[:, LATER] * before + d[:, LATER])
    return scanned


def _before_later(scanned: Tensor) -> Tensor:
    """The left neighbours of the sites 2, 4, 6, ..."""
    return scanned[:, SECOND][:, : (scanned.shape[1] - 1) // 2]


def _linear_scan(gate: Tensor, value: Tensor) -> Tensor:
    """``v_t = gate_t v_{t-1} + value_t`` from 0 along axis 1."""
    n_pairs = value.shape[1] // 2
    if n_pairs == 0:
        return value
    first, second = gate[:, : 2 * n_pairs : 2], gate[:, SECOND]
    pair = value[:, SECOND] + second * value[:, : 2 * n_pairs : 2]
    scanned = torch.empty_like(value)
    scanned[:, SECOND] = _linear_scan(second * first, pair)
    scanned[:, :1] = value[:, :1]
    scanned[:, LATER] = value[:, LATER] + gate[:, LATER] * _before_later(scanned)
    return scanned
