"""The recurrences of the causal resolvent in numba, a task at a time.

Shapes: B rows, N sites, K value channels, H heads, F = 2 (1 + K) feature planes, W lanes
(neighbouring heads). A task sweeps its sites block by block, so that what one recurrence wrote is
still in the first cache when the next one reads it. Only the last axis of an array must be dense.
"""

from typing import Any, NamedTuple

import numpy as np

from bkray.ops.lanes import load, prefetch, reciprocal, store, take_ticket, zero
from bkray.ops.tasks import lanewise

BLOCK_SITES = 16


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
    """Chunk, row and first head of a task.

    If W does not divide H, the last lanes overlap the ones before: both write the same numbers.
    """
    n_blocks = -(-H // W)
    rest, block = divmod(number, n_blocks)
    chunk, row = divmod(rest, B)
    return chunk, row, min(block * W, H - W)


def forward_tasks(
    ticket: Any, chunks: Any, halo: int, width: Any, past_cache: Any, h: Any, x: Any, energy: Any,
    eta: Any, state: Any, features: Any,
) -> None:  # fmt: skip
    """Fill ``features`` (B, N, F, H); several threads may call this with one ``ticket``.

    Args:
        ticket: (1,), the number of the next task, shared by the threads.
        chunks: (C, 2), first site of each time chunk and the one behind its last.
        halo: sites that a chunk starts early, from nothing; the first one starts from ``state``.
        width: a tuple of W anything: its length is the number of lanes.
        past_cache: None, or True to write past the cache (see ``lanes.store``).
    """
    B, _, K, H = x.shape
    W = len(width)
    n_tasks = len(chunks) * B * -(-H // W)
    carry = np.empty((2 * (1 + K), W), h.dtype)
    g = np.empty((BLOCK_SITES, 2, W), h.dtype)
    number = take_ticket(ticket)
    while number < n_tasks:
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


def backward_tasks(
    ticket: Any, chunks: Any, halo: int, width: Any, past_cache: Any, features: Any, grad: Any,
    left: Any, sums: Any, dh: Any, dx: Any,
) -> None:  # fmt: skip
    """Fill ``dh`` (B, N, H) and ``dx`` (B, N, K, H) from the gradient of the features.

    Also ``left`` (C, B, F, H), what each chunk hands on to the site before it, and ``sums``
    (C, B, 2, H), in float64: the parts of the gradients of energy and eta. Halos are on the right.
    """
    B, N, K, H = dx.shape
    W = len(width)
    carry = np.empty((2 * (1 + K), W), dh.dtype)
    pull = np.empty((BLOCK_SITES, 2, W), dh.dtype)
    block_sums, task_sums = np.empty((2, W), dh.dtype), np.empty((2, W), np.float64)
    n_tasks = len(chunks) * B * -(-H // W)
    number = take_ticket(ticket)
    while number < n_tasks:
        chunk, row, head = _task(n_tasks - 1 - number, B, H, W)  # the newest features first
        start, end = chunks[chunk]
        carry[:] = 0
        task_sums[:] = 0
        stop = min(end + halo, N)
        while stop > start:
            first = max(stop - BLOCK_SITES, end if stop > end else start)
            block = _Block(row, head, first, stop, min(end - stop, 0))
            pull[:] = 0
            for k in range(K):
                _value_back(features, grad, k, carry, pull, dx, block, width, past_cache)
            _green_back(features, grad, carry, pull, block_sums, dh, block, width, past_cache)
            if stop <= end:
                task_sums += block_sums
            stop = first
        sums[chunk, row, :, head : head + W] = task_sums
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
