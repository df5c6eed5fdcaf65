"""What generated rows are worth: a classifier that has seen them alone, tested on real ones.

Letters: B rows, L frames, D channels, K classes.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from bkray.data.of_generator import READ_ROWS, Standardised, in_parts
from bkray.data.sequences import Whole
from bkray.nn.vae import VAEGenerator, interpolated, pooled
from bkray.ops.time_scales import TimeScales, nearest_mean_accuracy, shrunken_means


class Downstream(NamedTuple):
    """Share of test rows, all real, that are put into their class, after training on each kind of
    ``per_class`` rows each."""

    synthetic: float
    pooled: float
    """Real rows averaged down to the training length and interpolated: what is left at it."""
    real: float
    per_class: int
    n_tested: int


def downstream(
    model: VAEGenerator, data: Standardised, per_class: int, output_length: int
) -> Downstream:
    """Return the accuracy of the classifier trained on generated rows, pooled and real ones.

    Features are fitted to the real training rows, and are the same for both. Generated rows of
    another length are interpolated to that of the data.

    Args:
        per_class: rows of each class at most; as many of either kind as there are real ones.
        output_length: frames that are generated.
    """
    source, known = data.source, _looked_at(data, per_class)
    made = (
        _made(model, k, known.per_class, output_length, source.n_frames)
        for k in range(source.n_classes)
    )
    made_KF = shrunken_means(known.scales, made)
    return Downstream(
        nearest_mean_accuracy(made_KF, known.test_NF, known.label_N),
        _accuracy_pooled(data, per_class, model.training_sequence_length),
        nearest_mean_accuracy(known.real_KF, known.test_NF, known.label_N),
        known.per_class,
        len(known.label_N),
    )


class _Known(NamedTuple):
    """What does not depend on the generator."""

    scales: TimeScales
    per_class: int
    of_class: list[Whole]
    """Row numbers that the classifier learns from."""
    real_KF: Tensor
    """Mean features of the real classes."""
    test_NF: Tensor
    label_N: Tensor


@lru_cache(maxsize=1)  # trials of one process mostly share it
def _looked_at(data: Standardised, per_class: int) -> _Known:
    source, train, test = data.source, data.index["train"], data.index["test"]
    of_class = [train[source.label_N[train] == k] for k in range(source.n_classes)]
    of_class = [index[:per_class] for index in of_class]
    scales = TimeScales.fit(_real(data, train), source.n_frames, source.n_channels)
    return _Known(
        scales,
        per_class,
        of_class,
        shrunken_means(scales, (_real(data, index) for index in of_class)),
        torch.cat([scales.features(part) for part in _real(data, test)]),
        torch.from_numpy(source.label_N[test]),
    )


@lru_cache(maxsize=8)  # lengths of a sweep
def _accuracy_pooled(data: Standardised, per_class: int, training_length: int) -> float:
    known, n_frames = _looked_at(data, per_class), data.source.n_frames
    looks = (
        (interpolated(pooled(x_BLD, training_length), n_frames) for x_BLD in _real(data, index))
        for index in known.of_class
    )
    mean_KF = shrunken_means(known.scales, looks)
    return nearest_mean_accuracy(mean_KF, known.test_NF, known.label_N)


def _real(data: Standardised, index_B: Whole) -> Iterator[Tensor]:
    return map(data.rows, in_parts(index_B))


def _made(
    model: VAEGenerator, label: int, n_rows: int, output_length: int, n_frames: int
) -> Iterator[Tensor]:
    """Yield generated rows of one class, on the host and as long as the data."""
    device = next(model.parameters()).device
    for first in range(0, n_rows, READ_ROWS):
        n = min(READ_ROWS, n_rows - first)
        label_B = torch.full((n,), label, device=device)
        rows_BLD = model.sample(n, output_length, label_B)
        yield interpolated(rows_BLD, n_frames).float().cpu()
