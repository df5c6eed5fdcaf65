"""Embeddings from files: ``.npy`` with its labels beside it, or Parquet.

Letters: N rows, L frames, D width.
"""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bkray.data.sequences import Rows, Sequences, Whole
from bkray.errors import DataError

EMBEDDING, LABEL = "embedding", "label"
"""Columns of a Parquet file: a list of L lists of D numbers, and a whole number."""

ADVICE = (
    "give a .npy file of shape (n, frames, channels) with NAME.labels.npy beside NAME.npy, or a "
    f"Parquet file with the columns {EMBEDDING} (a list of lists) and {LABEL}"
)

_PIECE_BYTES = 64 * 2**20
"""Read at once while checking."""


def read_sequences(path: str | Path) -> Sequences:
    """Return the embeddings of a file, of any number type; rows come as float32.

    A ``.npy`` file is mapped and not loaded. Every value is looked at once.

    Raises:
        DataError: nothing there, another shape or type, a value that is NaN or infinite, labels
            missing or not the whole numbers from 0 on.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"there is no file {path}: {ADVICE}")
    if path.suffix == ".npy":
        rows_NLD, label_N = _load(path), _load(labels_beside(path))
    elif path.suffix == ".parquet":
        rows_NLD, label_N = _columns(path)
    else:
        raise DataError(f"{path} is neither .npy nor .parquet: {ADVICE}")
    if rows_NLD.ndim != 3 or 0 in rows_NLD.shape or rows_NLD.dtype.kind not in "fiu":
        raise DataError(
            f"{path} has the shape {rows_NLD.shape} and the type {rows_NLD.dtype}, where "
            "(n, frames, channels) of numbers is needed"
        )
    checked_N = _labels(path, label_N, len(rows_NLD))
    return Sequences(
        name=path.stem,
        source=f"{len(rows_NLD)} rows of {rows_NLD.shape[1]} frames x {rows_NLD.shape[2]} from "
        f"{path.name}",
        n_frames=rows_NLD.shape[1],
        n_channels=rows_NLD.shape[2],
        label_N=checked_N,
        fingerprint=_fingerprint(path, rows_NLD, checked_N),
        read=lambda index_B: rows_NLD[index_B].astype(np.float32),
    )


def labels_beside(path: Path) -> Path:
    """Return where the labels of ``NAME.npy`` are: ``NAME.labels.npy``."""
    return path.with_name(f"{path.stem}.labels.npy")


def _load(path: Path) -> npt.NDArray[np.generic]:
    try:
        loaded: npt.NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"labels are missing, there is no file {path}: {ADVICE}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as .npy: {error}") from error
    return loaded


def _columns(path: Path) -> tuple[Rows, npt.NDArray[np.generic]]:
    """Return the rows (N, L, D) and their labels."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        for name in (EMBEDDING, LABEL):
            if name not in names:
                raise DataError(f"{path} has no column {name}, only {', '.join(names)}: {ADVICE}")
        table = file.read(columns=[EMBEDDING, LABEL])
        frames = table.column(EMBEDDING).combine_chunks().cast(pa.large_list(_FRAME))
        channels = frames.flatten()
        shape = (len(frames), _one_length(path, frames), _one_length(path, channels))
        values, label = channels.flatten(), table.column(LABEL)
        if values.null_count or label.null_count:
            raise DataError(f"{path} has missing values: {ADVICE}")
        return values.to_numpy().reshape(shape), label.to_numpy()
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}; {ADVICE}") from error


_FRAME = pa.large_list(pa.float32())


def _one_length(path: Path, lists: pa.Array) -> int:
    """Return the length that all lists have."""
    lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
    if lists.null_count or len(lengths) != 1:
        said = ", ".join(str(length) for length in lengths[:5])
        raise DataError(f"{path} has rows of different lengths ({said}): cut or fill them first")
    return int(lengths[0])


def _labels(path: Path, label_N: npt.NDArray[np.generic], n_rows: int) -> Whole:
    if label_N.shape != (n_rows,) or label_N.dtype.kind not in "iu":
        raise DataError(
            f"the labels of {path} must be {n_rows} whole numbers, got {label_N.shape} of "
            f"{label_N.dtype}"
        )
    checked_N = label_N.astype(np.int64)
    there = np.unique(checked_N)
    if not np.array_equal(there, np.arange(len(there))) or len(there) < 2:
        raise DataError(
            f"the labels of {path} must be 0, 1, .. up to the last class, two at least, with none "
            f"left out; they are {', '.join(str(label) for label in there[:10])}"
        )
    return checked_N


def _fingerprint(path: Path, rows_NLD: npt.NDArray[np.generic], label_N: Whole) -> str:
    """Return SHA-256 over shape, labels and rows, having looked at every value."""
    digest = hashlib.sha256(f"{rows_NLD.shape} {rows_NLD.dtype.str}\n".encode())
    digest.update(label_N.tobytes())
    n_at_once = max(1, _PIECE_BYTES // (rows_NLD[0].size * 8))
    for first in range(0, len(rows_NLD), n_at_once):
        piece = np.ascontiguousarray(rows_NLD[first : first + n_at_once])
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
            fine_N = np.isfinite(piece.astype(np.float32)).all(axis=(1, 2))
        if not fine_N.all():
            row = first + int(np.flatnonzero(~fine_N)[0])
            raise DataError(
                f"{path} has values that are NaN or infinite as float32, first in row {row}: mend "
                "or leave out such rows first"
            )
        digest.update(piece.tobytes())
    return digest.hexdigest()
