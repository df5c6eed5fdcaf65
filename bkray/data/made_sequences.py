"""Made sequences of eight classes that differ at three time scales, over ``1 / f^a`` noise.

Each of the three bits of a class is the sign of one component. The middle and the fast one have no
power at all up to a known frequency, and means of exactly 0 over the bins of every short pooling:
there two classes that differ in that bit alone are the same. Letters: L frames, D width.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from bkray.data.sequences import Rows, Sequences, Whole
from bkray.errors import DataError
from bkray.ops.pooling import pooling, power

N_CLASSES = 8
"""Two to the number of components."""

N_SOURCES = 16
"""Independent processes that the noise of all D channels is mixed from, as embeddings are."""

SIGNAL_SHARE = 0.2
"""Of the variance of a value: the three components together."""

_SPREAD = 0.3
"""Amplitudes of a class component are even over 1 minus to 1 plus this, from row to row."""
_FORMAT = 1  # counts up when the rows of a seed change
_LEAST_FRAMES = 32

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Component:
    """What one bit of a class adds. ``wave_L`` has mean 0 and mean square 1."""

    name: str
    above_cycles: int
    """No power at so many cycles per row or fewer."""
    erased_up_to: int
    """The longest training length at which, as at every shorter one, pooling leaves nothing."""
    wave_L: Array


def made_sequences(
    *,
    spectrum: int = 1,
    frames: int = 1214,
    dim: int = 768,
    n_per_class: int = 64,
    seed: int = 0,
) -> Sequences:
    """Return made rows, each of unit variance; a row is made when it is read, always the same.

    Args:
        spectrum: ``a`` of the noise's spectrum ``1 / f^a``: 0, 1, 2 or 3.
        frames: L, at least 32.
        dim: D.
        n_per_class: rows of each of the eight classes.

    Raises:
        DataError: a value that is not allowed.
    """
    if spectrum not in (0, 1, 2, 3):
        raise DataError(f"spectrum must be 0, 1, 2 or 3, got {spectrum}")
    for name, value, least in (("frames", frames, _LEAST_FRAMES), ("dim", dim, 1)):
        if value < least:
            raise DataError(f"{name} must be at least {least}, got {value}")
    if n_per_class < 1:
        raise DataError(f"n_per_class must be at least 1, got {n_per_class}")
    knobs = {"spectrum": spectrum, "frames": frames, "dim": dim, "n_per_class": n_per_class}
    words = json.dumps(["made", _FORMAT, {**knobs, "seed": seed}], sort_keys=True)
    generator = np.random.default_rng([seed, dim])
    mixing_RD = generator.standard_normal((N_SOURCES, dim))
    mixing_RD /= np.linalg.norm(mixing_RD, axis=0)
    # Within the span of the noise: a class must not show in channels that have none.
    along_RB, _ = np.linalg.qr(generator.standard_normal((N_SOURCES, len(components(frames)))))
    direction_BD = along_RB.T @ mixing_RD
    direction_BD /= np.sqrt(np.mean(direction_BD**2, axis=1, keepdims=True))
    read = partial(_rows, spectrum, frames, seed, mixing_RD, direction_BD)
    return Sequences(
        name="made",
        source=f"made rows of {frames} frames x {dim}, {N_CLASSES} classes at three time scales "
        f"over noise with spectrum 1/f^{spectrum}, seed {seed}",
        n_frames=frames,
        dim=dim,
        label_N=np.arange(N_CLASSES * n_per_class, dtype=np.int64) % N_CLASSES,
        fingerprint=hashlib.sha256(words.encode()).hexdigest(),
        read=read,
    )


@cache
def components(frames: int) -> tuple[Component, ...]:
    """Return the slow, the middle and the fast component of rows of so many frames.

    Bit ``b`` of a class is the sign of component ``b``. At 1,214 frames the middle one is erased
    at training lengths up to 8, the fast one up to 32.
    """
    fast = 4
    while fast * (2 * fast + 1) <= frames / 2:  # means at all lengths up to 2 fast
        fast *= 2
    slow_L = np.sqrt(2) * np.sin(2 * np.pi * (np.arange(frames) + 0.5) / frames)
    return (
        Component("slow", 0, 1, slow_L),
        _hidden("middle", frames, max(fast // 4, 1)),
        _hidden("fast", frames, fast),
    )


def _hidden(name: str, frames: int, up_to: int) -> Component:
    """Return a wave of ``5/4 up_to`` cycles, less all that a shorter look could see of it."""
    site_L = np.arange(frames)
    angle_KL = 2 * np.pi * np.arange(up_to + 1)[:, None] * site_L / frames
    looks = [pooling(frames, length) for length in range(1, up_to + 1)]
    seen_SL = np.concatenate([*looks, np.cos(angle_KL), np.sin(angle_KL)])
    left, size, _ = np.linalg.svd(seen_SL.T, full_matrices=False)
    basis_LS = left[:, size > 1e-9 * size[0]]
    wave_L = np.cos(2 * np.pi * 1.25 * up_to * (site_L + 0.5) / frames)
    for _ in range(2):  # the second time takes away what rounding left
        wave_L = wave_L - basis_LS @ (basis_LS.T @ wave_L)
    return Component(name, up_to, up_to, wave_L / np.sqrt(np.mean(wave_L**2)))


def _rows(
    spectrum: int, frames: int, seed: int, mixing_RD: Array, direction_BD: Array, index_N: Whole
) -> Rows:
    wave_LB = np.stack([part.wave_L for part in components(frames)], axis=1)
    gain_K = np.sqrt(power(frames, spectrum))
    size = np.sqrt(SIGNAL_SHARE / (wave_LB.shape[1] * (1 + _SPREAD**2 / 3)))
    rows = np.empty((len(index_N), frames, mixing_RD.shape[1]), dtype=np.float32)
    for place, index in enumerate(index_N):
        generator = np.random.default_rng([seed, spectrum, frames, int(index)])
        white_RL = generator.standard_normal((N_SOURCES, frames))
        source_RL = np.fft.irfft(np.fft.rfft(white_RL) * gain_K, frames)
        bit_B = (int(index) % N_CLASSES >> np.arange(wave_LB.shape[1])) & 1
        amplitude_B = size * (2 * bit_B - 1) * generator.uniform(1 - _SPREAD, 1 + _SPREAD, 3)
        rows[place] = (
            np.sqrt(1 - SIGNAL_SHARE) * (source_RL.T @ mixing_RD)
            + (wave_LB * amplitude_B) @ direction_BD
        )
    return rows
