"""What pooling leaves of a stationary Gaussian process, for any decoder and for interpolation.

NumPy alone. Letters: L sites of a row, T pooled ones.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def power(n_sites: int, exponent: float) -> Array:
    """Return the power at 0..L/2 cycles per row of a process with spectrum ``1 / f^exponent``.

    ``S_k = max(k, 1)^-exponent``, scaled to unit variance over all L frequencies: the mean, at 0
    cycles, has as much as one cycle. An exponent of 0 is white noise.
    """
    cycles = np.arange(n_sites // 2 + 1, dtype=np.float64)
    power_K: Array = np.maximum(cycles, 1.0) ** -exponent
    power_K /= np.concatenate([power_K, power_K[1 : (n_sites + 1) // 2]]).mean()
    return power_K


def covariance(n_sites: int, exponent: float) -> Array:
    """Return the covariance of the L sites of such a process, circulant, (L, L)."""
    of_lag_L = np.fft.irfft(power(n_sites, exponent), n_sites)
    site_L = np.arange(n_sites)
    between: Array = of_lag_L[(site_L[:, None] - site_L) % n_sites]
    return between


def pooling(n_sites: int, n_pooled: int) -> Array:
    """Return the matrix of adaptive average pooling, (T, L): bin ``i`` runs from ``floor(i L/T)``
    up to but not including ``ceil((i + 1) L/T)``."""
    means_TL = np.zeros((n_pooled, n_sites))
    for i in range(n_pooled):
        first, end = i * n_sites // n_pooled, -(-(i + 1) * n_sites // n_pooled)
        means_TL[i, first:end] = 1 / (end - first)
    return means_TL


def interpolation(n_pooled: int, n_sites: int) -> Array:
    """Return the matrix of linear interpolation between the middles of bins, (L, T)."""
    place_L = (np.arange(n_sites) + 0.5) * n_pooled / n_sites - 0.5
    place_L = place_L.clip(0, n_pooled - 1)
    before_L = np.minimum(place_L.astype(np.int64), max(n_pooled - 2, 0))
    weights_LT = np.zeros((n_sites, n_pooled))
    weights_LT[np.arange(n_sites), before_L] = 1 - (place_L - before_L)
    weights_LT[np.arange(n_sites), np.minimum(before_L + 1, n_pooled - 1)] += place_L - before_L
    return weights_LT


def recoverable(covariance_LL: Array, n_pooled: int) -> float:
    """Return the largest share of variance that any decoder can recover from the T averages.

    For a Gaussian process the best decoder is linear and its error has the covariance
    ``C - C P^T (P C P^T)^-1 P C``, so the share is ``tr(C P^T (P C P^T)^-1 P C) / tr C``.

    Args:
        covariance_LL: of the process; P C P^T must not be singular.

    Returns:
        From 0 to 1; 1 where T is L.
    """
    means_TL = pooling(len(covariance_LL), n_pooled)
    seen_TL = means_TL @ covariance_LL
    known_TL = np.linalg.solve(seen_TL @ means_TL.T, seen_TL)
    return float((known_TL * seen_TL).sum() / np.trace(covariance_LL))


def interpolated(covariance_LL: Array, n_pooled: int) -> float:
    """Return the share of variance that linear interpolation of the T averages recovers.

    One less the mean squared error over the variance: at most ``recoverable``, and possibly
    below 0.
    """
    n_sites = len(covariance_LL)
    left_LL = np.eye(n_sites) - interpolation(n_pooled, n_sites) @ pooling(n_sites, n_pooled)
    missed = ((left_LL @ covariance_LL) * left_LL).sum()
    return float(1 - missed / np.trace(covariance_LL))
