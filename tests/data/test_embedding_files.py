"""Embeddings from files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.data.embedding_files import labels_beside, read_sequences
from bkray.errors import DataError

SHAPE = (6, 5, 3)


def values(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)


def npy(folder: Path, rows: np.ndarray, label: object = (0, 1, 2, 0, 1, 2)) -> Path:
    path = folder / "rows.npy"
    np.save(path, rows)
    if label is not None:
        np.save(labels_beside(path), np.asarray(label))
    return path


def parquet(folder: Path, rows: object, label: object = (0, 1, 2, 0, 1, 2)) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"embedding": rows, "label": list(label)}), path)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16"])
def test_rows_of_npy_come_as_float32_in_the_order_asked_for(tmp_path: Path, dtype: str) -> None:
    rows = values(dtype)
    read = read_sequences(npy(tmp_path, rows))
    assert (read.n_rows, read.n_frames, read.n_channels, read.n_classes) == (*SHAPE, 3)
    got = read.read(np.array([4, 0, 4]))
    assert got.dtype == np.float32
    assert np.array_equal(got, rows[[4, 0, 4]].astype(np.float32))
    assert read.label_N.tolist() == [0, 1, 2, 0, 1, 2]


def test_rows_of_parquet_are_those_that_were_written(tmp_path: Path) -> None:
    rows = values()
    read = read_sequences(parquet(tmp_path, rows.tolist()))
    assert np.array_equal(read.read(np.arange(6)), rows)
    assert read.label_N.tolist() == [0, 1, 2, 0, 1, 2]


def test_the_fingerprint_follows_values_and_labels_and_not_the_name(tmp_path: Path) -> None:
    rows, changed = values(), values()
    changed[5, 4, 2] += 1
    prints = []
    for place, (what, label) in enumerate(
        [(rows, (0, 1) * 3), (rows, (0, 1) * 3), (changed, (0, 1) * 3), (rows, (1, 0) * 3)]
    ):
        folder = tmp_path / str(place)
        folder.mkdir()
        prints.append(read_sequences(npy(folder, what, label)).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_reported_with_its_row(tmp_path: Path, bad: float) -> None:
    rows = values()
    rows[4, 1, 2] = bad
    for path in (npy(tmp_path, rows), parquet(tmp_path, rows.tolist())):
        with pytest.raises(DataError, match="NaN or infinite as float32, first in row 4"):
            read_sequences(path)


def test_what_float32_cannot_hold_is_not_finite(tmp_path: Path) -> None:
    rows = values("float64")
    rows[2, 0, 0] = 1e300
    with pytest.raises(DataError, match="first in row 2"):
        read_sequences(npy(tmp_path, rows))


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (None, "labels are missing, there is no file .*rows.labels.npy"),
        ((0, 1, 2), "must be 6 whole numbers"),
        ((0.5,) * 6, "must be 6 whole numbers"),
        ((0, 1, 3, 0, 1, 3), "with none left out; they are 0, 1, 3"),
        ((0,) * 6, "two at least"),
    ],
)
def test_labels_that_do_not_fit_are_one_clear_error(
    tmp_path: Path, label: object, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        read_sequences(npy(tmp_path, values(), label))


@pytest.mark.parametrize("rows", [values()[0], values()[:, :0], values().astype("U4")])
def test_other_shapes_and_types_are_one_clear_error(tmp_path: Path, rows: np.ndarray) -> None:
    with pytest.raises(DataError, match="numbers is needed"):
        read_sequences(npy(tmp_path, rows))


def test_files_that_are_none_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_sequences(tmp_path / "none.npy")
    for name in ("rows.npy", "rows.parquet", "rows.csv"):
        (tmp_path / name).write_bytes(b"no numbers")
        with pytest.raises(DataError, match=r"cannot be read as|neither \.npy nor \.parquet"):
            read_sequences(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([None, 1]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read as"):
        read_sequences(tmp_path / "objects.npy")


def test_parquet_of_other_columns_or_lengths_is_one_clear_error(tmp_path: Path) -> None:
    rows = values().tolist()
    rows[1] = rows[1][:-1]
    with pytest.raises(DataError, match=r"different lengths \(4, 5\)"):
        read_sequences(parquet(tmp_path, rows))
    rows = values().tolist()
    rows[2][3] = rows[2][3][:-1]
    with pytest.raises(DataError, match=r"different lengths \(2, 3\)"):
        read_sequences(parquet(tmp_path, rows))
    rows[2][3] = [1.0, None, 2.0]
    with pytest.raises(DataError, match="missing values"):
        read_sequences(parquet(tmp_path, rows))
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_sequences(parquet(tmp_path, ["a"] * 6))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match="has no column embedding, only text"):
        read_sequences(tmp_path / "text.parquet")
