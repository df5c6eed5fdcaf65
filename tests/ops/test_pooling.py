"""What pooling leaves: matrices, brute force and simulation."""

import numpy as np
import pytest

from bkray.ops.pooling import covariance, interpolated, interpolation, pooling, power, recoverable

L = 60
every_exponent = pytest.mark.parametrize("exponent", [0, 1, 2, 3, 0.5])


@every_exponent
@pytest.mark.parametrize("n_sites", [L, L + 1])
def test_the_covariance_is_that_of_the_spectrum(exponent: float, n_sites: int) -> None:
    between = covariance(n_sites, exponent)
    assert np.allclose(np.diag(between), 1)
    assert np.allclose(between, between.T)
    of_frequency = np.abs(np.fft.fft(between[0]).real)
    expected = np.maximum(np.minimum(np.arange(n_sites), n_sites - np.arange(n_sites)), 1.0)
    assert np.allclose(of_frequency / of_frequency[1], expected**-exponent, rtol=1e-6)
    assert np.allclose(of_frequency[: n_sites // 2 + 1], power(n_sites, exponent), rtol=1e-6)


@every_exponent
def test_simulated_rows_have_that_covariance(exponent: float) -> None:
    gain = np.sqrt(power(L, exponent))
    white = np.random.default_rng(0).standard_normal((20000, L))
    rows = np.fft.irfft(np.fft.rfft(white) * gain, L)
    assert np.abs(rows.T @ rows / len(rows) - covariance(L, exponent)).max() < 0.06


@every_exponent
def test_no_linear_decoder_beats_the_bound_and_the_best_one_attains_it(exponent: float) -> None:
    generator = np.random.default_rng(0)
    between = covariance(L, exponent)
    rows = generator.standard_normal((6000, L)) @ np.linalg.cholesky(between).T
    for n_pooled in (1, 4, 7, 16):
        pooled = rows @ pooling(L, n_pooled).T
        decoder, *_ = np.linalg.lstsq(pooled, rows)
        fitted = 1 - np.sum((rows - pooled @ decoder) ** 2) / np.sum(rows**2)
        assert abs(fitted - recoverable(between, n_pooled)) < 0.02
        linear = rows - pooled @ interpolation(n_pooled, L).T
        assert (
            abs(1 - np.sum(linear**2) / np.sum(rows**2) - interpolated(between, n_pooled)) < 0.02
        )


@every_exponent
def test_the_bound_is_the_error_of_conditioning_by_brute_force(exponent: float) -> None:
    between, means = covariance(L, exponent), pooling(L, 7)
    seen = means @ between
    left = between - seen.T @ np.linalg.inv(seen @ means.T) @ seen
    assert np.isclose(recoverable(between, 7), 1 - np.trace(left) / np.trace(between))


@every_exponent
def test_more_averages_leave_more_and_interpolation_never_recovers_more(exponent: float) -> None:
    between = covariance(L, exponent)
    shares = [recoverable(between, n) for n in (4, 8, 16, 32)]
    assert shares == sorted(shares)
    for share, n in zip(shares, (4, 8, 16, 32), strict=True):
        assert interpolated(between, n) <= share + 1e-12
    assert np.isclose(recoverable(between, L), 1)
    assert np.isclose(interpolated(between, L), 1)


def test_white_noise_keeps_the_share_of_its_averages() -> None:
    for n_pooled in (1, 4, 20):  # that divide the length: bins do not overlap
        assert np.isclose(recoverable(covariance(L, 0), n_pooled), n_pooled / L)


def test_one_average_is_spread_over_the_row() -> None:
    assert (interpolation(1, 5) == 1).all()
    assert np.allclose(pooling(5, 1), 1 / 5)
