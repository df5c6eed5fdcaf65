"""Kernels of numba that work through numbered tasks, on as many threads as there are to be."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import from_dtype, njit, types
from torch import Tensor

lanewise = functools.partial(njit, nogil=True, error_model="numpy")

Typed = tuple[Any, Any]
"""An argument of a kernel: its numba type, and its value."""


def width_of(lanes: int) -> Typed:
    """Return the argument that tells a kernel its number of lanes: a tuple of that length."""
    return types.UniTuple(types.int64, lanes), (0,) * lanes


def numbers(rows: Sequence[Sequence[int]]) -> Any:
    """Return whole numbers as an array, for an argument of type ``int64[:, ::1]``."""
    return np.array(rows, np.int64)


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
