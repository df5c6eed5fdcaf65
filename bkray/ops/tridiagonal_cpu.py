"""The causal resolvent on the CPU: numba, SIMD lanes over heads, tasks over rows, heads and time.

Shapes: B rows, N sites, K value channels, H heads, F = 2 (1 + K) feature planes, C time chunks,
W lanes (neighbouring heads). A task sweeps its sites block by block, so that what one recurrence
wrote is still in the first cache when the next one reads it.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import from_dtype, njit, types
from torch import Tensor

from bkray.ops.lanes import CACHE_LINE, load, prefetch, reciprocal, store, take_ticket, zero
from bkray.ops.tridiagonal import halo_sites

BLOCK_SITES = 16
WIDE_BYTES, NARROW_BYTES = 256, 128
"""Lanes of a task: enough chains to hide the latency of a division; narrow to feed all threads."""
HALO_SHARE = 8
"""A time chunk is at least so many halos long, so at most 1/8 of the work is done twice."""
SERIAL_SITE_CHANNELS = 1 << 15
"""Below this a second thread costs more than it saves (waking it takes tens of microseconds)."""

PAST_CACHE_BYTES = 8 << 20
"""Results larger than this leave the cache before anyone reads them: written past it."""

lanewise = functools.partial(njit, nogil=True, error_model="numpy")


def forward(
    h_BNH: Tensor, x_BNKH: Tensor, energy_H: Tensor, eta_H: Tensor, state_BFH: Tensor
) -> Tensor:
    """Return the features, as ``tridiagonal.causal_resolvent`` documents them."""
    B, N, K, H = x_BNKH.shape
    features_BNFH = h_BNH.new_empty(B, N, 2 * (1 + K), H)
    plan = _plan(B, N, H, eta_H)
    plan.run(_forward_tasks, (h_BNH, x_BNKH, energy_H, eta_H, state_BFH), (features_BNFH,))
    lost_BFH = torch.zeros(B, 2 * (1 + K), H, dtype=torch.bool)
    for first, stop in plan.chunks[1:]:  # a chunk that starts from its halo sees no older NaN
        lost_BFH |= ~features_BNFH[:, first - 1].isfinite()
        _lose(features_BNFH[:, first:stop], lost_BFH)
    return features_BNFH


def backward(features_BNFH: Tensor, grad_BNFH: Tensor, eta_H: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of h, x, energy, eta and state by the reverse recurrences."""
    B, N, F, H = features_BNFH.shape
    K = F // 2 - 1
    plan = _plan(B, N, H, eta_H)
    C = len(plan.chunks)
    h_BNH, x_BNKH = features_BNFH.new_empty(B, N, H), features_BNFH.new_empty(B, N, K, H)
    left_CBFH = features_BNFH.new_empty(C, B, F, H)
    sums_CB2H = torch.empty(C, B, 2, H, dtype=torch.float64)
    given, wanted = (features_BNFH, grad_BNFH, left_CBFH, sums_CB2H), (h_BNH, x_BNKH)
    plan.run(_backward_tasks, given, wanted)
    lost_BFH = torch.zeros(B, F, H, dtype=torch.bool)
    for chunk in reversed(range(C - 1)):
        lost_BFH |= ~left_CBFH[chunk + 1].isfinite()
        lost_BFH[:, :2] |= lost_BFH.any(1, keepdim=True)  # the values pull on g
        sites = slice(*plan.chunks[chunk])
        _lose(h_BNH[:, sites], lost_BFH[:, 0])
        _lose(x_BNKH[:, sites], lost_BFH[:, 2 : 2 + K])
        _lose(left_CBFH[chunk].unsqueeze(1), lost_BFH)
    energy_H, eta_grad_H = sums_CB2H.sum((0, 1)).to(features_BNFH.dtype)
    return h_BNH, x_BNKH, energy_H, eta_grad_H, left_CBFH[0]


def _lose(sites: Tensor, lost: Tensor) -> None:
    """Make NaN of what depends on a site that was not finite, all along axis 1."""
    if lost.any():
        sites.masked_fill_(lost.unsqueeze(1), torch.nan)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a sweep is cut: W lanes, [first, stop) of the time chunks, halo sites, threads."""

    width: int
    chunks: list[tuple[int, int]]
    halo: int
    n_threads: int

    def run(
        self, tasks: Callable[..., None], tensors: Sequence[Tensor], results: Sequence[Tensor]
    ) -> None:
        """Work through the tasks, on this thread and as many others as there are to be."""
        aligned = [t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous() for t in tensors]
        arrays = [t.detach().numpy() for t in (*aligned, *results)]
        past_cache = sum(t.nbytes for t in results) > PAST_CACHE_BYTES and self._in_lines(results)
        kinds = tuple((a.dtype, a.ndim) for a in arrays)
        compiled = _compiled(tasks, kinds, self.width, past_cache)
        work = functools.partial(
            compiled,
            np.zeros(1, np.int64),
            np.array(self.chunks),
            self.halo,
            (0,) * self.width,
            True if past_cache else None,
            *arrays,
        )
        helpers = [_pool(os.getpid()).submit(work) for _ in range(self.n_threads - 1)]
        work()
        for helper in helpers:
            if not helper.cancel():
                helper.result()

    def _in_lines(self, results: Sequence[Tensor]) -> bool:
        """Whether lanes cover whole cache lines wherever a task writes them."""
        steps = [n for t in results for n in (t.data_ptr(), t.shape[-1] * t.element_size())]
        steps.append(self.width * results[0].element_size())
        return all(n % CACHE_LINE == 0 for n in steps)


def _plan(B: int, N: int, H: int, eta_H: Tensor) -> _Plan:
    """Rows first, then chunks of time, which keep whole lines of memory together, then heads."""
    n_threads = torch.get_num_threads() if B * N * H > SERIAL_SITE_CHANNELS else 1
    width = _width(H, WIDE_BYTES // eta_H.element_size())
    n_rows = B * -(-H // width)
    even = n_threads // math.gcd(n_rows, n_threads)  # chunks that give each thread as many tasks
    missing = min(even, -(-4 * n_threads // n_rows))
    n_chunks, halo = 1, 0
    if missing > 1 and bool((eta_H > 0).all()):
        halo = halo_sites(float(eta_H.min()), eta_H.dtype)
        n_chunks = max(1, min(missing, N // (HALO_SHARE * halo + BLOCK_SITES)))
    if n_rows * n_chunks < n_threads:
        width = _width(H, NARROW_BYTES // eta_H.element_size())
    firsts = [N * c // n_chunks for c in range(n_chunks + 1)]
    return _Plan(width, list(itertools.pairwise(firsts)), halo, n_threads)


def _width(H: int, lanes: int) -> int:
    """The largest power of two that neither ``H`` nor ``lanes``, a power of two, is below."""
    return int(min(lanes, 1 << (H.bit_length() - 1)))


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked child has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="bkray-scan")


@functools.cache
def _compiled(
    tasks: Callable[..., None], arrays: tuple[tuple[Any, int], ...], width: int, past_cache: bool
) -> Callable[..., None]:
    """Machine code for any strides, from numba's cache on disk if it was made before."""
    strided = [types.Array(from_dtype(dtype), ndim, "A") for dtype, ndim in arrays]
    lanes = types.UniTuple(types.int64, width)
    plan = (types.int64[::1], types.int64[:, ::1], types.int64, lanes)
    way = types.boolean if past_cache else types.none
    compiled: Callable[..., None] = lanewise(types.void(*plan, way, *strided), cache=True)(tasks)
    return compiled


class _Block(NamedTuple):
    """Sites ``[first, stop)`` of row ``row``, lanes from head ``head`` on.

    Results go to ``shift`` sites further: a halo's are written where the chunk's own will be.
    """

    row: int
    head: int
    first: int
    stop: int
    shift: int


@lanewise
def _task(number: int, B: int, H: int, W: int) -> tuple[int, int, int]:
    """Chunk, row and first head of a task. The last lanes overlap if W does not divide H."""
    n_blocks = -(-H // W)
    rest, block = divmod(number, n_blocks)
    chunk, row = divmod(rest, B)
    return chunk, row, min(block * W, H - W)


def _forward_tasks(
    ticket: Any, chunks: Any, halo: int, width: Any, past_cache: Any, h: Any, x: Any, energy: Any,
    eta: Any, state: Any, features: Any,
) -> None:  # fmt: skip
    B, _, K, H = x.shape
    W = len(width)
    carry = np.empty((2 * (1 + K), W), h.dtype)
    g = np.empty((BLOCK_SITES, 2, W), h.dtype)
    number = take_ticket(ticket)
    while number < len(chunks) * B * -(-H // W):
        chunk, row, head = _task(number, B, H, W)
        start, end = chunks[chunk]
        first = max(start - halo, 0)
        for plane in range(2 * (1 + K)):
            for lane in range(W):
                carry[plane, lane] = state[row, plane, head + lane] if first == 0 else 0
        while first < end:
            stop = min(first + BLOCK_SITES, start if first < start else end)
            block = _Block(row, head, first, stop, max(start - first, 0))
            _green(h, energy, eta, carry, g, features, block, width, past_cache)
            for k in range(K):
                _value(x, k, carry, g, features, block, width, past_cache)
            first = stop
        number = take_ticket(ticket)


@lanewise
def _green(
    h: Any, energy: Any, eta: Any, carry: Any, g: Any, features: Any, block: _Block, width: Any,
    past_cache: Any,
) -> None:  # fmt: skip
    """``g = 1 / (h - E - i eta - g)``, with ``1 / (a - i c) = (a + i c) / (a^2 + c^2)``."""
    row, head, first, stop, shift = block
    energy_W, eta_W = load(energy, (head,), width), load(eta, (head,), width)
    g_re, g_im = load(carry, (0, 0), width), load(carry, (1, 0), width)
    for t in range(first, stop):
        a = load(h, (row, t, head), width) - energy_W - g_re
        c = eta_W + g_im
        scale = reciprocal(a * a + c * c)
        g_re, g_im = a * scale, c * scale
        store(g, (t - first, 0, 0), g_re, None)
        store(g, (t - first, 1, 0), g_im, None)
        store(features, (row, t + shift, 0, head), g_re, past_cache)
        store(features, (row, t + shift, 1, head), g_im, past_cache)
    store(carry, (0, 0), g_re, None)
    store(carry, (1, 0), g_im, None)


@lanewise
def _value(
    x: Any, k: int, carry: Any, g: Any, features: Any, block: _Block, width: Any, past_cache: Any
) -> None:
    """``y = g (x - y)`` of one value channel."""
    row, head, first, stop, shift = block
    re, im = 2 + k, 2 + k + x.shape[2]
    y_re, y_im = load(carry, (re, 0), width), load(carry, (im, 0), width)
    for t in range(first, stop):
        g_re, g_im = load(g, (t - first, 0, 0), width), load(g, (t - first, 1, 0), width)
        d = load(x, (row, t, k, head), width) - y_re
        y_re, y_im = g_re * d + g_im * y_im, g_im * d - g_re * y_im
        store(features, (row, t + shift, re, head), y_re, past_cache)
        store(features, (row, t + shift, im, head), y_im, past_cache)
    store(carry, (re, 0), y_re, None)
    store(carry, (im, 0), y_im, None)


def _backward_tasks(
    ticket: Any, chunks: Any, halo: int, width: Any, past_cache: Any, features: Any, grad: Any,
    left: Any, sums: Any, dh: Any, dx: Any,
) -> None:  # fmt: skip
    B, N, K, H = dx.shape
    W = len(width)
    carry = np.empty((2 * (1 + K), W), dh.dtype)
    pull = np.empty((BLOCK_SITES, 2, W), dh.dtype)
    block_sums = np.empty((2, W), dh.dtype)
    n_tasks = len(chunks) * B * -(-H // W)
    number = take_ticket(ticket)
    while number < n_tasks:
        chunk, row, head = _task(n_tasks - 1 - number, B, H, W)  # the newest features first
        start, end = chunks[chunk]
        carry[:] = 0
        sums[chunk, row, :, head : head + W] = 0
        stop = min(end + halo, N)
        while stop > start:
            first = max(stop - BLOCK_SITES, end if stop > end else start)
            block = _Block(row, head, first, stop, min(end - stop, 0))
            pull[:] = 0
            for k in range(K):
                _value_back(features, grad, k, carry, pull, dx, block, width, past_cache)
            _green_back(features, grad, carry, pull, block_sums, dh, block, width, past_cache)
            if stop <= end:
                sums[chunk, row, :, head : head + W] += block_sums
            stop = first
        left[chunk, row, :2, head : head + W] = carry[:2]
        left[chunk, row, 2:, head : head + W] = -carry[2:]
        number = take_ticket(ticket)


@lanewise
def _value_back(
    features: Any, grad: Any, k: int, carry: Any, pull: Any, dx: Any, block: _Block, width: Any,
    past_cache: Any,
) -> None:  # fmt: skip
    """``u = g' dy``: ``dx = Re u``, ``dy`` to the left loses ``u``, ``y' u`` pulls on ``g``."""
    row, head, first, stop, shift = block
    re, im = 2 + k, 2 + k + dx.shape[2]
    u_re, u_im = load(carry, (re, 0), width), load(carry, (im, 0), width)
    for t in range(stop - 1, first - 1, -1):
        for plane in (re, im):
            prefetch(features, (row, max(t - BLOCK_SITES, 0), plane, head), width)
            prefetch(grad, (row, max(t - BLOCK_SITES, 0), plane, head), width)
        g_re = load(features, (row, t, 0, head), width)
        g_im = load(features, (row, t, 1, head), width)
        dy_re = load(grad, (row, t, re, head), width) - u_re
        dy_im = load(grad, (row, t, im, head), width) - u_im
        u_re, u_im = g_re * dy_re + g_im * dy_im, g_re * dy_im - g_im * dy_re
        store(dx, (row, t + shift, k, head), u_re, past_cache)
        y_re = load(features, (row, t, re, head), width)
        y_im = load(features, (row, t, im, head), width)
        pull_re, pull_im = (
            load(pull, (t - first, 0, 0), width),
            load(pull, (t - first, 1, 0), width),
        )
        store(pull, (t - first, 0, 0), pull_re + y_re * u_re + y_im * u_im, None)
        store(pull, (t - first, 1, 0), pull_im + y_re * u_im - y_im * u_re, None)
    store(carry, (re, 0), u_re, None)
    store(carry, (im, 0), u_im, None)


@lanewise
def _green_back(
    features: Any, grad: Any, carry: Any, pull: Any, sums: Any, dh: Any, block: _Block, width: Any,
    past_cache: Any,
) -> None:  # fmt: skip
    """``v = (g^2)' dg + sum_k y_k' u_k`` goes left; ``dh = -Re v``; the sums of ``v`` are dz."""
    row, head, first, stop, shift = block
    v_re, v_im = load(carry, (0, 0), width), load(carry, (1, 0), width)
    sum_re, sum_im = zero(dh, width), zero(dh, width)
    for t in range(stop - 1, first - 1, -1):
        for plane in (0, 1):
            prefetch(features, (row, max(t - BLOCK_SITES, 0), plane, head), width)
            prefetch(grad, (row, max(t - BLOCK_SITES, 0), plane, head), width)
        g_re = load(features, (row, t, 0, head), width)
        g_im = load(features, (row, t, 1, head), width)
        square_re, square_im = g_re * g_re - g_im * g_im, (g_re + g_re) * g_im
        dg_re = load(grad, (row, t, 0, head), width) + v_re
        dg_im = load(grad, (row, t, 1, head), width) + v_im
        v_re = load(pull, (t - first, 0, 0), width) + square_re * dg_re + square_im * dg_im
        v_im = load(pull, (t - first, 1, 0), width) + square_re * dg_im - square_im * dg_re
        store(dh, (row, t + shift, head), zero(dh, width) - v_re, past_cache)
        sum_re, sum_im = sum_re + v_re, sum_im + v_im
    store(carry, (0, 0), v_re, None)
    store(carry, (1, 0), v_im, None)
    store(sums, (0, 0), sum_re, None)
    store(sums, (1, 0), sum_im, None)
