"""What generated rows are worth to a classifier: told on generators whose worth is known."""

import pytest
import torch
from generators import tiny_generator
from torch import Tensor

from bkray.data.of_generator import Standardised, sequences
from bkray.nn.vae import VAEGenerator, pooled
from bkray.train.downstream import downstream
from bkray.train.generating import variance_ratio

T, FRAMES, PER_CLASS, CLASSES = 32, 256, 40, 4
CHANCE = 1 / CLASSES


@pytest.fixture(scope="module")
def data() -> Standardised:
    made = {"n_frames": FRAMES, "n_channels": 8, "n_classes": CLASSES, "n_per_class": 80}
    return Standardised(sequences(tiny_generator(spectrum=1, **made).data))


class Rows(VAEGenerator):
    """Gives real training rows back, averaged down, as those of the class ``shift`` further."""

    def __init__(self, data: Standardised, shift: int | None) -> None:
        super().__init__(8, 4, 2, T, FRAMES, use_conditioned_vae=True, n_classes=CLASSES)
        self.rows, self.shift = data.split("train"), shift

    def sample(
        self,
        n: int,
        output_sequence_length: int | None = None,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        assert labels is not None
        x_NLD, label_N = self.rows
        order_N = torch.randperm(len(label_N), generator=torch.Generator().manual_seed(n))
        if self.shift is None:  # deaf to the class
            index_B = order_N[:n]
        else:
            wanted_B = (labels + self.shift) % CLASSES
            of_class = [order_N[label_N[order_N] == k] for k in range(CLASSES)]
            each = [of_class[k][i % len(of_class[k])] for i, k in enumerate(wanted_B.tolist())]
            index_B = torch.stack(each)
        short_BTD = pooled(x_NLD[index_B], T)
        return self.upsampled(short_BTD, output_sequence_length or FRAMES)


def test_a_generator_that_gives_real_rows_back_is_worth_as_much_as_they(
    data: Standardised,
) -> None:
    found = downstream(Rows(data, 0), data, PER_CLASS, FRAMES)
    assert found.real > 0.9
    assert found.synthetic == pytest.approx(found.pooled, abs=0.1)
    assert found.pooled > 2 * CHANCE


def test_a_generator_that_is_deaf_to_the_class_is_worth_nothing(data: Standardised) -> None:
    assert downstream(Rows(data, None), data, PER_CLASS, FRAMES).synthetic < CHANCE + 0.12


def test_rows_of_the_wrong_classes_are_worse_than_chance(data: Standardised) -> None:
    assert downstream(Rows(data, 1), data, PER_CLASS, FRAMES).synthetic < CHANCE


def test_real_rows_spread_as_real_rows_do(data: Standardised) -> None:
    assert variance_ratio(Rows(data, 0), data.split("train")) == pytest.approx(1, abs=0.1)
