"""What a generator's trial reads: standardised rows, held-out ones, batches that resume."""

from pathlib import Path

import numpy as np
import pytest
import torch
from generators import NOT_MADE, TINY, tiny_generator, write_embeddings

from bkray.data.of_generator import RowBatches, Standardised, sequences, standardised
from bkray.data.sequences import Sequences
from bkray.overrides import build


@pytest.fixture(scope="module")
def data() -> Standardised:
    return Standardised(sequences(tiny_generator().data))


def test_channels_have_mean_0_and_variance_1_over_the_training_rows() -> None:
    made = sequences(tiny_generator().data)
    shifted = Sequences(
        name="shifted",
        source="",
        n_frames=made.n_frames,
        n_channels=made.n_channels,
        label_N=made.label_N,
        fingerprint="",
        read=lambda index: np.float32([3, 1, 1, 0]) * made.read(index) + np.float32([5, 0, 9, 2]),
    )
    x_NLD = Standardised(shifted).split("train").x_NLD.double()
    assert x_NLD.mean((0, 1)).abs().max() < 1e-5
    assert x_NLD.var((0, 1), correction=0)[:3] == pytest.approx(torch.ones(3), abs=1e-4)
    assert not x_NLD[..., 3].any(), "a channel that never varies"


def test_splits_share_no_row_and_pooling_is_of_the_same_rows(data: Standardised) -> None:
    together = np.concatenate([data.index[name] for name in ("train", "valid", "test")])
    assert sorted(together) == list(range(data.source.n_rows))
    whole, short = data.split("valid"), data.split("valid", 8)
    assert torch.equal(whole.label_N, short.label_N)
    expected = whole.x_NLD.unflatten(1, (8, 8)).mean(2)
    assert torch.allclose(short.x_NLD, expected, atol=1e-6)


def test_batches_go_on_where_they_were(data: Standardised) -> None:
    rows = data.split("train", 8)
    batches = RowBatches(rows, 5, seed=1)
    for _ in range(6):
        next(batches)
    state, expected = batches.state(), next(batches)
    again = RowBatches(rows, 5, seed=1)
    again.restore(state)
    assert all(torch.equal(a, b) for a, b in zip(next(again), expected, strict=True))
    assert again.last_taken == batches.last_taken and again.last_taken[0] == state


def test_an_epoch_has_every_row_once_in_an_order_of_its_seed(data: Standardised) -> None:
    rows, orders = data.split("train", 8), []
    for seed in (0, 1):
        batches, taken = RowBatches(rows, 7, seed), list[int]()
        while len(taken) < len(rows.label_N):
            next(batches)
            taken += batches.last_taken[1]
        orders.append(taken[: len(rows.label_N)])
        assert sorted(orders[-1]) == list(range(len(rows.label_N)))
    assert orders[0] != orders[1]


def test_made_rows_are_kept_and_those_of_a_file_are_not(tmp_path: Path) -> None:
    config = tiny_generator().data
    assert standardised(config, sequences(config)) is standardised(config, sequences(config))
    path = write_embeddings(tmp_path / "a.npy", seed=0)
    file = build({**TINY, **NOT_MADE, "embeddings": str(path)}).data
    assert sequences(file).n_frames == 12
    assert standardised(file, sequences(file)) is not standardised(file, sequences(file))
