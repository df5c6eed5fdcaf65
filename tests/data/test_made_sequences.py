"""Made sequences: spectra, classes that pooling erases, seeds."""

import numpy as np
import pytest

from bkray.data.made_sequences import SIGNAL_SHARE, components, made_sequences
from bkray.data.sequences import Rows, splits
from bkray.errors import DataError
from bkray.ops.pooling import pooling, power

FRAMES, CHANNELS = 128, 24


def rows_of(n: int = 64, **knobs: float) -> Rows:
    made = made_sequences(
        **{"n_frames": FRAMES, "n_channels": CHANNELS, "n_per_class": 64, **knobs}
    )
    return made.read(np.arange(n))


@pytest.mark.parametrize("n_frames", [32, 61, 128, 1214])
def test_pooling_erases_the_hidden_components_at_every_length_up_to_theirs(n_frames: int) -> None:
    fast, slow, middle = components(n_frames)
    for part in (fast, slow, middle):
        assert np.isclose(np.mean(part.wave_L**2), 1)
        for length in range(1, part.erased_up_to + 1):
            assert np.abs(pooling(n_frames, length) @ part.wave_L).max() < 1e-12
        size_K = np.abs(np.fft.rfft(part.wave_L)) / n_frames
        assert size_K[: part.above_cycles + 1].max() < 1e-12

        def seen(length: int, wave_L: np.ndarray = part.wave_L) -> float:
            return float(np.mean((pooling(n_frames, length) @ wave_L) ** 2))

        assert seen(2 * part.erased_up_to) > 0.01, "twice that length shows it"
    assert slow.erased_up_to < middle.erased_up_to < fast.erased_up_to or n_frames < 100
    assert [part.erased_up_to for part in components(1214)] == [32, 1, 8]


def test_classes_that_differ_in_the_fast_bit_alone_are_the_same_after_pooling() -> None:
    fast, slow, middle = components(FRAMES)
    x = rows_of(512).reshape(64, 8, FRAMES, CHANNELS).astype(np.float64)
    of_class = x.mean(axis=0)
    for bit, part in enumerate((fast, slow, middle)):
        apart = of_class[1 << bit] - of_class[0]
        along = np.abs(part.wave_L @ apart).max() / FRAMES
        assert along > 0.3, "the whole rows tell the two classes apart"
        signal = np.outer(part.wave_L, part.wave_L @ apart) / FRAMES
        pooled = pooling(FRAMES, part.erased_up_to) @ signal
        assert np.abs(pooled).max() < 1e-12


@pytest.mark.parametrize("spectrum", [0, 1, 2, 3])
def test_the_noise_has_the_spectrum_that_was_asked_for(spectrum: float) -> None:
    x = rows_of(256, spectrum=spectrum, n_classes=2).astype(np.float64)
    x = x - x.reshape(128, 2, FRAMES, CHANNELS).mean(0)[np.arange(256) % 2]
    measured_K = (np.abs(np.fft.rfft(x, axis=1)) ** 2).mean(axis=(0, 2)) / FRAMES
    expected_K = (1 - SIGNAL_SHARE) * power(FRAMES, spectrum)
    quiet = np.abs(np.fft.rfft(components(FRAMES)[0].wave_L)) < 0.05 * FRAMES
    quiet &= np.arange(len(quiet)) < 10
    assert quiet.sum() >= 8
    ratio = measured_K[quiet] / expected_K[quiet]
    assert np.abs(np.log(ratio)).max() < 0.35


def test_values_have_unit_variance_and_the_noise_rank_holds_the_classes() -> None:
    x = rows_of(512).astype(np.float64)
    assert abs(x.var() - 1) < 0.1
    size = np.linalg.svd(rows_of(8, n_channels=40).reshape(-1, 40), compute_uv=False)
    assert size[16] < 1e-5 * size[15], "a class shows in no channel that has no noise"


def test_rows_are_made_from_their_number_and_the_seed() -> None:
    one, same, other = (
        made_sequences(n_frames=64, n_channels=8, n_per_class=n, seed=seed)
        for n, seed in ((3, 0), (5, 0), (3, 1))
    )
    assert np.array_equal(one.read(np.array([2, 17])), same.read(np.array([2, 17])))
    assert np.array_equal(one.read(np.array([17]))[0], one.read(np.array([2, 17]))[1])
    assert not np.allclose(one.read(np.array([0])), other.read(np.array([0])))
    prints = {made.fingerprint for made in (one, same, other)}
    assert len(prints) == 3
    again = made_sequences(n_frames=64, n_channels=8, n_per_class=3)
    assert again.fingerprint == one.fingerprint
    assert one.n_rows == 24 and one.n_classes == 8
    assert one.read(np.array([0])).dtype == np.float32


def test_splits_are_disjoint_whole_seeded_and_even_over_classes() -> None:
    label = made_sequences(n_frames=32, n_channels=2, n_per_class=20).label_N
    parts = splits(label, 0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(160))
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 112,
        "valid": 24,
        "test": 24,
    }
    for part in parts.values():
        assert len(np.unique(np.bincount(label[part], minlength=8))) == 1
    again, other = splits(label, 0), splits(label, 1)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    assert not np.array_equal(parts["train"], other["train"])


def test_every_split_has_every_class_however_few_rows_there_are() -> None:
    label = np.arange(12) % 4
    assert {name: len(part) for name, part in splits(label, 0).items()} == {
        "train": 4,
        "valid": 4,
        "test": 4,
    }
    with pytest.raises(DataError, match="too few rows: class 1 has 2"):
        splits(np.array([0, 0, 0, 1, 1]), 0)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"spectrum": 5}, "spectrum must be from 0 to 4, got 5"),
        ({"n_frames": 31}, "n_frames must be at least 32, got 31"),
        ({"n_classes": 3}, "n_classes must be 2, 4 or 8, got 3"),
        ({"n_per_class": 0}, "n_per_class must be at least 1"),
    ],
)
def test_what_is_not_allowed_is_one_clear_error(knobs: dict[str, float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        made_sequences(**knobs)  # type: ignore[arg-type]
