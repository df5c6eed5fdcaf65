"""Made sequences of classes that differ at three time scales, over ``1 / f^a`` noise.

Each bit of a class is the sign of one component. The fast and the middle one have no power at all
up to a known frequency, and means of exactly 0 over the bins of every short pooling: there two
classes that differ in that bit alone are the same. Letters: L frames, D width, R sources, P
components.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from bkray.data.sequences import Rows, Sequences, Whole
from bkray.errors import DataError
from bkray.ops.pooling import pooling, power

N_CLASSES = (2, 4, 8)
"""Two classes differ in the fast component; four in the slow one too, eight in all three."""

N_SOURCES = 16
"""Independent processes that the noise of all channels is mixed from, as in embeddings."""

SIGNAL_SHARE = 0.2
"""Of the variance of a value: all components together."""

LEAST_FRAMES = 32

_SPREAD = 0.3
"""Amplitudes of a class component are even over 1 minus to 1 plus this, from row to row."""
_FORMAT = 1  # counts up when the rows of a seed change

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
    spectrum: float = 2.0,
    n_frames: int = 1214,
    n_channels: int = 768,
    n_classes: int = 8,
    n_per_class: int = 128,
    seed: int = 0,
) -> Sequences:
    """Return made rows, each value of unit variance; a row is made when it is read.

    Row ``i`` is of class ``i % n_classes`` and the same however many there are.

    Args:
        spectrum: ``a`` of the noise's spectrum ``1 / f^a``, 0 to 4; 0 is white.
        n_frames: L, at least 32.
        n_channels: D.
        n_classes: 2, 4 or 8.

    Raises:
        DataError: a value that is not allowed.
    """
    if not 0 <= spectrum <= 4:
        raise DataError(f"spectrum must be from 0 to 4, got {spectrum}")
    if n_classes not in N_CLASSES:
        raise DataError(
            f"n_classes must be 2, 4 or 8, got {n_classes}: each doubling is a time scale more"
        )
    at_least = (("n_frames", n_frames, LEAST_FRAMES), ("n_channels", n_channels, 1))
    for name, value, least in (*at_least, ("n_per_class", n_per_class, 1)):
        if value < least:
            raise DataError(f"{name} must be at least {least}, got {value}")
    maker = Maker(float(spectrum), n_frames, n_channels, n_classes, seed)
    words = json.dumps([_FORMAT, *maker.knobs, n_per_class])
    return Sequences(
        name="made",
        source=f"made rows of {n_frames} frames x {n_channels}, {n_classes} classes over noise "
        f"with spectrum 1/f^{spectrum:g}, seed {seed}",
        n_frames=n_frames,
        n_channels=n_channels,
        label_N=np.arange(n_classes * n_per_class, dtype=np.int64) % n_classes,
        fingerprint=hashlib.sha256(words.encode()).hexdigest(),
        read=maker,
    )


class Maker:
    """Makes rows from their numbers: ``sqrt(1 - s)`` times noise, plus the class's components."""

    def __init__(
        self, spectrum: float, n_frames: int, n_channels: int, n_classes: int, seed: int
    ) -> None:
        self.knobs = (spectrum, n_frames, n_channels, n_classes, seed)
        parts = components(n_frames)[: n_classes.bit_length() - 1]
        generator = np.random.default_rng([seed, n_channels])
        self.mixing_RD = generator.standard_normal((N_SOURCES, n_channels))
        self.mixing_RD /= np.linalg.norm(self.mixing_RD, axis=0)
        # Within the span of the noise: a class must not show in channels that have none.
        along_RP, _ = np.linalg.qr(generator.standard_normal((N_SOURCES, len(parts))))
        self.direction_PD = along_RP.T @ self.mixing_RD
        self.direction_PD /= np.sqrt(np.mean(self.direction_PD**2, axis=1, keepdims=True))
        amplitude = np.sqrt(SIGNAL_SHARE / (len(parts) * (1 + _SPREAD**2 / 3)))
        self.wave_LP = amplitude * np.stack([part.wave_L for part in parts], axis=1)
        self.gain_K = np.sqrt(power(n_frames, spectrum))

    def __call__(self, index_B: Whole) -> Rows:
        _, n_frames, n_channels, _, _ = self.knobs
        rows = np.empty((len(index_B), n_frames, n_channels), dtype=np.float32)
        for place, index in enumerate(index_B.tolist()):
            rows[place] = self._row(index)
        return rows

    def _row(self, index: int) -> Array:
        _, n_frames, _, n_classes, seed = self.knobs
        generator = np.random.default_rng([seed, n_frames, n_classes, index])
        white_RL = generator.standard_normal((N_SOURCES, n_frames))
        source_RL = np.fft.irfft(np.fft.rfft(white_RL) * self.gain_K, n_frames)
        n_parts = self.wave_LP.shape[1]
        sign_P = 2 * (index % n_classes >> np.arange(n_parts) & 1) - 1
        size_P = sign_P * generator.uniform(1 - _SPREAD, 1 + _SPREAD, n_parts)
        noise_LD = np.sqrt(1 - SIGNAL_SHARE) * _product(source_RL.T, self.mixing_RD)
        row_LD: Array = noise_LD + _product(self.wave_LP * size_P, self.direction_PD)
        return row_LD


def _product(left: Array, right: Array) -> Array:
    """Return the matrix product by as many threads as torch has: NumPy's own would take all cores,
    and wait for them in every trial that runs beside others."""
    product: Array = (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()
    return product


@cache
def components(n_frames: int) -> tuple[Component, Component, Component]:
    """Return the fast, the slow and the middle component of rows of so many frames.

    Bit ``b`` of a class is the sign of component ``b``. At 1,214 frames the middle one is erased
    at training lengths up to 8, the fast one up to 32.
    """
    up_to = 4
    while up_to * (2 * up_to + 1) <= n_frames / 2:  # means at all lengths up to the double
        up_to *= 2
    slow_L = np.sqrt(2) * np.sin(2 * np.pi * (np.arange(n_frames) + 0.5) / n_frames)
    return (
        _hidden("fast", n_frames, up_to),
        Component("slow", 0, 1, slow_L),
        _hidden("middle", n_frames, up_to // 4),
    )


def _hidden(name: str, n_frames: int, up_to: int) -> Component:
    """Return a wave of ``5/4 up_to`` cycles, less all that a shorter look could see of it."""
    site_L = np.arange(n_frames)
    angle_KL = 2 * np.pi * np.arange(up_to + 1)[:, None] * site_L / n_frames
    looks = [pooling(n_frames, length) for length in range(1, up_to + 1)]
    seen_SL = np.concatenate([*looks, np.cos(angle_KL), np.sin(angle_KL)])
    size_S, among_SS = np.linalg.eigh(seen_SL @ seen_SL.T)
    kept = size_S > 1e-12 * size_S[-1]  # others are 1e-15, the least that count 1e-9 and more
    inverse_SS = among_SS[:, kept] / size_S[kept] @ among_SS[:, kept].T
    wave_L = np.cos(2 * np.pi * 1.25 * up_to * (site_L + 0.5) / n_frames)
    for _ in range(3):  # once would do but for rounding
        wave_L = wave_L - seen_SL.T @ (inverse_SS @ (seen_SL @ wave_L))
    return Component(name, up_to, up_to, wave_L / np.sqrt(np.mean(wave_L**2)))
