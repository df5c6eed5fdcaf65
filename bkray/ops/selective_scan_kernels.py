"""The selective scan and its reverse in numba, a task at a time.

Shapes: B rows, N sites, D channels, S states per channel, M blocks of sites, G groups of channels,
W lanes (neighbouring channels). A task is a row and a group of channels. It sweeps block by block
of sites, and in a block lanes by lanes, so that rows of memory are read whole and what belongs to
W channels stays in the first cache. Only the last axis of an array must be dense, and W divide D.
"""

from typing import Any

import numpy as np

from bkray.ops.lanes import exp2, load, spread, store, take_ticket, total, zero
from bkray.ops.tasks import channels_of, lanewise

BLOCK_SITES = 32


def forward_tasks(
    ticket: Any, G: int, width: Any, x: Any, dt: Any, rate: Any, into: Any, out: Any, skip: Any,
    state: Any, y: Any, borders: Any,
) -> None:  # fmt: skip
    """Fill ``y`` (B, N, D) and ``borders`` (B, M, S, D), the states in front of each block.

    ``state`` (B, S, D) ends as the last one; ``rate`` (S, D) is in powers of two per unit of
    ``dt``.
    """
    B, N, D = x.shape
    S, W = len(rate), len(width)
    h, rates = np.empty((S, W), x.dtype), np.empty((S, W), x.dtype)
    number = take_ticket(ticket)
    while number < B * G:
        row, _, head, tail = channels_of(number, G, D, W)
        for first in range(0, N, BLOCK_SITES):
            stop = min(first + BLOCK_SITES, N)
            for channel in range(head, tail, W):
                for s in range(S):
                    store(rates, (s, 0), load(rate, (s, channel), width), None)
                    before = load(state, (row, s, channel), width)
                    store(h, (s, 0), before, None)
                    store(borders, (row, first // BLOCK_SITES, s, channel), before, None)
                skip_W = load(skip, (channel,), width)
                for t in range(first, stop):
                    x_W = load(x, (row, t, channel), width)
                    dt_W = load(dt, (row, t, channel), width)
                    put_W, y_W = dt_W * x_W, skip_W * x_W
                    for s in range(S):
                        decay_W = exp2(dt_W * load(rates, (s, 0), width))
                        h_W = decay_W * load(h, (s, 0), width)
                        h_W = h_W + put_W * spread(into, (row, t, s), width)
                        store(h, (s, 0), h_W, None)
                        y_W = y_W + h_W * spread(out, (row, t, s), width)
                    store(y, (row, t, channel), y_W, None)
                for s in range(S):
                    store(state, (row, s, channel), load(h, (s, 0), width), None)
        number = take_ticket(ticket)


def backward_tasks(
    ticket: Any, G: int, width: Any, x: Any, dt: Any, rate: Any, into: Any, out: Any, skip: Any,
    borders: Any, dy: Any, dstate: Any, log2: Any, dx: Any, ddt: Any, drate: Any, dskip: Any,
    dinto: Any, dout: Any,
) -> None:  # fmt: skip
    """Fill the gradients from that of ``y`` and, in ``dstate`` (B, S, D), that of ``last``.

    ``dstate`` ends as the gradient of the first states. ``drate`` (B, S, D) and ``dskip`` (B, 1,
    D), in float64 and 0 before, are parts by rows, ``dinto`` and ``dout`` (G, B, N, S) by groups;
    ``log2`` (1,) is ln 2.
    """
    B, N, D = x.shape
    S, W = len(rate), len(width)
    h = np.empty((BLOCK_SITES + 1, S, W), x.dtype)
    decay = np.empty((BLOCK_SITES, S, W), x.dtype)
    sums = np.empty((2, BLOCK_SITES, S, W), x.dtype)
    pull, rates = np.empty((S, W), x.dtype), np.empty((S, W), x.dtype)
    rate_sums, skip_sums = np.empty((S, W), x.dtype), np.empty((1, W), x.dtype)
    number = take_ticket(ticket)
    while number < B * G:
        row, group, head, tail = channels_of(number, G, D, W)
        for block in range((N - 1) // BLOCK_SITES, -1, -1):
            first, stop = block * BLOCK_SITES, min((block + 1) * BLOCK_SITES, N)
            sums[:] = 0
            for channel in range(head, tail, W):
                _fetch(rate, channel, rates, width)
                _fetch(borders[row, block], channel, h[0], width)
                _fetch(dstate[row], channel, pull, width)
                rate_sums[:] = 0
                _again(x, dt, into, rates, h, decay, row, first, stop, channel, width)
                _back(
                    x, dt, into, out, skip, dy, log2, rates, h, decay, pull, sums, rate_sums,
                    skip_sums, dx, ddt, row, first, stop, channel, width,
                )  # fmt: skip
                for s in range(S):
                    store(dstate, (row, s, channel), load(pull, (s, 0), width), None)
                _add(rate_sums, drate[row], channel, width)
                _add(skip_sums, dskip[row], channel, width)
            _total(sums[0], dinto[group, row, first:stop], width)
            _total(sums[1], dout[group, row, first:stop], width)
        number = take_ticket(ticket)


@lanewise
def _fetch(whole: Any, channel: int, part: Any, width: Any) -> None:
    for s in range(len(whole)):
        store(part, (s, 0), load(whole, (s, channel), width), None)


@lanewise
def _add(part: Any, sums: Any, channel: int, width: Any) -> None:
    for s in range(len(part)):
        for lane in range(len(width)):
            sums[s, channel + lane] += part[s, lane]


@lanewise
def _total(part: Any, sums: Any, width: Any) -> None:
    for i in range(len(sums)):
        for s in range(sums.shape[1]):
            sums[i, s] = total(load(part, (i, s, 0), width))


@lanewise
def _again(
    x: Any, dt: Any, into: Any, rates: Any, h: Any, decay: Any, row: int, first: int, stop: int,
    channel: int, width: Any,
) -> None:  # fmt: skip
    """Compute the decays and states of a block once more, from the state in front of it."""
    for t in range(first, stop):
        dt_W = load(dt, (row, t, channel), width)
        put_W = dt_W * load(x, (row, t, channel), width)
        for s in range(len(rates)):
            decay_W = exp2(dt_W * load(rates, (s, 0), width))
            store(decay, (t - first, s, 0), decay_W, None)
            h_W = decay_W * load(h, (t - first, s, 0), width)
            h_W = h_W + put_W * spread(into, (row, t, s), width)
            store(h, (t - first + 1, s, 0), h_W, None)


@lanewise
def _back(
    x: Any, dt: Any, into: Any, out: Any, skip: Any, dy: Any, log2: Any, rates: Any, h: Any,
    decay: Any, pull: Any, sums: Any, rate_sums: Any, skip_sums: Any, dx: Any, ddt: Any, row: int,
    first: int, stop: int, channel: int, width: Any,
) -> None:  # fmt: skip
    """``dh = C dy`` and what the later site pulls; it pulls on the earlier one with ``a dh``."""
    skip_W, log2_W = load(skip, (channel,), width), spread(log2, (0,), width)
    skip_sum_W = zero(x, width)
    for t in range(stop - 1, first - 1, -1):
        i = t - first
        x_W = load(x, (row, t, channel), width)
        dt_W = load(dt, (row, t, channel), width)
        dy_W = load(dy, (row, t, channel), width)
        put_W = dt_W * x_W
        dput_W, dpower_W = zero(x, width), zero(x, width)
        for s in range(len(rates)):
            dh_W = load(pull, (s, 0), width) + dy_W * spread(out, (row, t, s), width)
            into_sum_W = load(sums, (0, i, s, 0), width) + dh_W * put_W
            out_sum_W = load(sums, (1, i, s, 0), width) + dy_W * load(h, (i + 1, s, 0), width)
            store(sums, (0, i, s, 0), into_sum_W, None)
            store(sums, (1, i, s, 0), out_sum_W, None)
            dput_W = dput_W + dh_W * spread(into, (row, t, s), width)
            dh_W = dh_W * load(decay, (i, s, 0), width)
            store(pull, (s, 0), dh_W, None)
            dexponent_W = dh_W * load(h, (i, s, 0), width)
            dpower_W = dpower_W + dexponent_W * load(rates, (s, 0), width)
            rate_sum_W = load(rate_sums, (s, 0), width) + dexponent_W * dt_W
            store(rate_sums, (s, 0), rate_sum_W, None)
        store(dx, (row, t, channel), dput_W * dt_W + dy_W * skip_W, None)
        store(ddt, (row, t, channel), dput_W * x_W + dpower_W * log2_W, None)
        skip_sum_W = skip_sum_W + dy_W * x_W
    store(skip_sums, (0, 0), skip_sum_W, None)
