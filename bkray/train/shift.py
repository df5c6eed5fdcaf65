"""How far hidden states have moved from those that a model was trained to make.

Letters: R rows, M states of a row, D width, S splits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

DRAWS = 999
"""Swaps drawn for the permutation test, beside what was seen: its least p-value is 0.001."""

SPLITS = 64
"""Random halves of the reference rows that tell what chance alone makes of other text."""


class Shift(NamedTuple):
    """Of a sample against a reference of the same tokens; a NaN in a state is one here."""

    mean: float
    """Distance of the means, in root mean squares of the reference's distance from its own."""
    variance: float
    """Total variance over that of the reference."""
    correlation: float
    """1 less the cosine of the two correlation matrices: 0 for the same, at most 2."""
    energy: float
    """Energy coefficient: 0 where nothing moved, 1 at most; below 0 only by chance. In one channel
    as in many, half of the reference's distance from its own mean makes it 0.06, all of it 0.2."""
    energy_noise: float
    """Root mean square of the same between random halves of the reference's rows, whose states
    do not differ: what chance makes of as few rows as half of these."""
    p: float
    """Share of swaps within rows with at least that energy distance, what was seen among them."""


def shift(seen_RMD: Tensor, reference_RMD: Tensor) -> Shift:
    """Compare states with those of the same tokens at the train length.

    Where a strategy does nothing, a row's two sets of states can change places; the test swaps
    whole rows, since the states of a row depend on one another.

    Args:
        seen_RMD: at least two rows.

    Source: energy coefficient: Szekely and Rizzo 2013, J. Statist. Plann. Inference 143(8),
    1249-1272; correlation matrices: Herdin et al. 2005, IEEE VTC 61, 136-140.
    """
    seen_ND, reference_ND = (part.double().flatten(0, 1) for part in (seen_RMD, reference_RMD))
    spread, reference_spread = seen_ND.var(0).sum(), reference_ND.var(0).sum()
    moved = seen_ND.mean(0) - reference_ND.mean(0)
    ours, theirs = (torch.corrcoef(part.T) for part in (seen_ND, reference_ND))
    energy, p = energy_test(seen_RMD, reference_RMD)
    return Shift(
        mean=float(moved.norm() / reference_spread.sqrt()),
        variance=float(spread / reference_spread),
        correlation=float(1 - (ours * theirs).sum() / (ours.norm() * theirs.norm())),
        energy=energy,
        energy_noise=energy_noise(reference_RMD),
        p=p,
    )


def energy_test(seen_RMD: Tensor, reference_RMD: Tensor) -> tuple[float, float]:
    """Return the energy coefficient ``(2 E|X-Y| - E|X-X'| - E|Y-Y'|) / 2 E|X-Y|`` and the p-value.

    The means are over states of different rows, across too since a row's two sets are of the same
    tokens: without bias, so that the number of rows makes it surer and not larger.
    """
    within_a, within_b = _distances(seen_RMD, seen_RMD), _distances(reference_RMD, reference_RMD)
    across_RR = _distances(seen_RMD, reference_RMD)
    # A swap of row r changes the sign of all that its two sets have in the energy distance.
    signed_RR = (2 * across_RR - within_a - within_b).fill_diagonal_(0)
    n_rows = len(signed_RR)
    n_pairs = n_rows * (n_rows - 1)
    sign_SR = _signs(n_rows)
    energy_S = torch.einsum("sr,rq,sq->s", sign_SR, signed_RR, sign_SR) / n_pairs
    seen, across = energy_S[0], 2 * _off_diagonal_mean(across_RR)
    if not (seen + across).isfinite():
        return float("nan"), float("nan")
    p = (energy_S >= seen - 1e-12 * across).double().mean()
    return float(seen / across) if across > 0 else 0.0, float(p)


def energy_noise(reference_RMD: Tensor) -> float:
    """Return the root mean square of the energy coefficient of random halves of the rows.

    Args:
        reference_RMD: at least four rows; a NaN where there are fewer.
    """
    distance_RR = _distances(reference_RMD, reference_RMD)
    half = len(distance_RR) // 2
    draw = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(SPLITS):
        order = torch.randperm(len(distance_RR), generator=draw)
        a, b = order[:half], order[half : 2 * half]
        across = 2 * distance_RR[a][:, b].mean()
        within = sum(_off_diagonal_mean(distance_RR[x][:, x]) for x in (a, b))
        seen.append((across - within) / across)
    return float(torch.stack(seen).square().mean().sqrt())


def _off_diagonal_mean(distance_RR: Tensor) -> Tensor:
    n_rows = len(distance_RR)
    return (distance_RR.sum() - distance_RR.trace()) / (n_rows * (n_rows - 1))


def _distances(a_RMD: Tensor, b_RMD: Tensor) -> Tensor:
    """Return the mean distance between the states of every two rows, (R, R) in float64."""
    a_ND, b_ND = a_RMD.double().flatten(0, 1), b_RMD.double().flatten(0, 1)
    # The quick way through products cancels where states are equal.
    far_NN = torch.cdist(a_ND, b_ND, compute_mode="donot_use_mm_for_euclid_dist")
    return far_NN.view(*a_RMD.shape[:2], *b_RMD.shape[:2]).mean((1, 3))


def _signs(n_rows: int) -> Tensor:
    """Return choices of rows to swap, (S, R) of -1 and 1, the first of them none."""
    draw = torch.Generator().manual_seed(0)
    sign_SR = 2 * torch.randint(2, (DRAWS + 1, n_rows), generator=draw).double() - 1
    sign_SR[0] = 1
    return sign_SR
