"""Kernels of numba that work through numbered tasks, on as many threads as there are to be."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import from_dtype, njit, types
from torch import Tensor
from torch.nn.functional import pad

lanewise = functools.partial(njit, nogil=True, error_model="numpy")

LANE_BYTES = 64
"""Lanes of a task that is a row and a group of channels: one register of the widest kind."""

Typed = tuple[Any, Any]
"""An argument of a kernel: its numba type, and its value."""


def width_of(lanes: int) -> Typed:
    """Return the argument that tells a kernel its number of lanes: a tuple of that length."""
    return types.UniTuple(types.int64, lanes), (0,) * lanes


def numbers(rows: Sequence[Sequence[int]]) -> Any:
    """Return whole numbers as an array, for an argument of type ``int64[:, ::1]``."""
    return np.array(rows, np.int64)


def lane_width(x: Tensor) -> int:
    """Return how many numbers of the dtype of ``x`` fill ``LANE_BYTES``."""
    return LANE_BYTES // x.element_size()


def whole_lanes(*tensors: Tensor) -> list[Tensor]:
    """Return tensors with idle channels behind their own, up to a whole number of lanes."""
    missing = -tensors[0].shape[-1] % lane_width(tensors[0])
    return [pad(t, (0, missing)) if missing else t for t in tensors]


def shares(x_BND: Tensor, is_worth_it: bool) -> tuple[int, int]:
    """Return groups of channels and threads: each thread is to have as many tasks."""
    B, _, D = x_BND.shape
    n_threads = torch.get_num_threads() if is_worth_it else 1
    return min(n_threads // math.gcd(B, n_threads), D // lane_width(x_BND)), n_threads


@lanewise
def channels_of(number: int, G: int, D: int, W: int) -> tuple[int, int, int, int]:
    """Row, group, first channel and the one behind the last one of a task out of ``B G``."""
    row, group = divmod(number, G)
    n_lanes = D // W
    return row, group, n_lanes * group // G * W, n_lanes * (group + 1) // G * W


def run_tasks(
    tasks: Callable[..., None], plan: Sequence[Typed], tensors: Sequence[Tensor], n_threads: int
) -> None:
    """Work through all tasks of a kernel, on this thread and ``n_threads - 1`` others.

    Args:
        tasks: called with a ticket, (1,), the number of the next task that the threads share, the
            ``plan`` and the tensors as arrays whose last axis is dense.
        tensors: on the CPU. A last axis that is not dense is read from a copy: a tensor that is
            written to must have a dense one.
    """
    dense = [t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous() for t in tensors]
    arrays = [t.detach().numpy() for t in dense]
    kinds = tuple((a.dtype, a.ndim) for a in arrays)
    compiled = _compiled(tasks, tuple(kind for kind, _ in plan), kinds)
    values = (value for _, value in plan)
    work = functools.partial(compiled, np.zeros(1, np.int64), *values, *arrays)
    helpers = [_pool(os.getpid()).submit(work) for _ in range(n_threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked child has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="bkray-scan")


@functools.cache
def _compiled(
    tasks: Callable[..., None], plan: tuple[Any, ...], arrays: tuple[tuple[Any, int], ...]
) -> Callable[..., None]:
    """Machine code for any strides, from numba's cache on disk if it was made before."""
    strided = [types.Array(from_dtype(dtype), ndim, "A") for dtype, ndim in arrays]
    signature = types.void(types.int64[::1], *plan, *strided)
    compiled: Callable[..., None] = lanewise(signature, cache=True)(tasks)
    return compiled
