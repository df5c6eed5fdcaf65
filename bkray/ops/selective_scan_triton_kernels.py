"""The selective scan and its reverse in Triton.

Shapes: B rows, N sites, D channels, S states per channel, C time chunks, G blocks of channels. A
program is a row, a chunk and a block of channels, all states of which it holds, states along the
first axis. What ``AHEAD`` sites need is loaded before the first of them is computed. Behind the
last site the step is 0, which leaves the states as they are.
"""

# mypy: ignore-errors
# Hints of a kernel's arguments are Triton's own, and a tuple of loads grows as it is unrolled.

import triton
import triton.language as tl


@triton.jit
def _places(D, S, BLOCK, STATES):
    """Return row, chunk, channels, states, which of a (STATES, BLOCK) tile are there, and where
    they lie in (S, D)."""
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    states = tl.arange(0, STATES)
    there = (states < S)[:, None] & (channels < D)[None, :]
    row, chunk = tl.program_id(2).to(tl.int64), tl.program_id(1)
    return row, chunk, channels, states, there, states[:, None] * D + channels[None, :]


@triton.jit
def ends_kernel(
    x, dt, rate, into, ends, totals, N, D, S, n_sites, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
    STATES: tl.constexpr,
):  # fmt: skip
    """Fill ``ends`` (B, C, S, D), the states behind each chunk from 0, and ``totals`` (B, C, D),
    the sum of its steps."""
    row, chunk, channels, states, there, tile = _places(D, S, BLOCK, STATES)
    rate_SD = tl.load(rate + tile, there, 0)
    h_SD = tl.zeros((STATES, BLOCK), x.dtype.element_ty)
    total_D = tl.zeros((BLOCK,), x.dtype.element_ty)
    for site in range(chunk * n_sites, (chunk + 1) * n_sites, AHEAD):
        xs, dts, intos = (), (), ()
        for i in tl.static_range(AHEAD):
            at, inside = row * N + site + i, site + i < N
            xs += (tl.load(x + at * D + channels, inside & (channels < D), 0),)
            dts += (tl.load(dt + at * D + channels, inside & (channels < D), 0),)
            intos += (tl.load(into + at * S + states, inside & (states < S), 0),)
        for i in tl.static_range(AHEAD):
            put_D = dts[i] * xs[i]
            h_SD = tl.exp(dts[i][None, :] * rate_SD) * h_SD + intos[i][:, None] * put_D[None, :]
            total_D += dts[i]
    at = row * tl.num_programs(1) + chunk
    tl.store(ends + at * S * D + tile, h_SD, there)
    tl.store(totals + at * D + channels, total_D, channels < D)


@triton.jit
def borders_kernel(
    rate, ends, totals, state, borders, last, D, S, n_chunks, n_first, n_step,
    BLOCK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Go from chunk to chunk, from ``n_first`` by ``n_step``: ``borders`` (B, C, S, D) gets what
    comes into each one, ``state`` into the first, and ``last`` what leaves the last."""
    row, _, channels, _, there, tile = _places(D, S, BLOCK, STATES)
    rate_SD = tl.load(rate + tile, there, 0)
    h_SD = tl.load(state + row * S * D + tile, there, 0)
    for i in range(n_chunks):
        at = row * n_chunks + n_first + i * n_step
        end_SD = tl.load(ends + at * S * D + tile, there, 0)
        total_D = tl.load(totals + at * D + channels, channels < D, 0)
        tl.store(borders + at * S * D + tile, h_SD, there)
        h_SD = tl.exp(total_D[None, :] * rate_SD) * h_SD + end_SD
    tl.store(last + row * S * D + tile, h_SD, there)


@triton.jit
def forward_kernel(
    x, dt, rate, into, out, skip, borders, y, N, D, S, n_sites, BLOCK: tl.constexpr,
    AHEAD: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Fill ``y`` (B, N, D), each chunk from the states in front of it."""
    row, chunk, channels, states, there, tile = _places(D, S, BLOCK, STATES)
    rate_SD = tl.load(rate + tile, there, 0)
    skip_D = tl.load(skip + channels, channels < D, 0)
    h_SD = tl.load(borders + (row * tl.num_programs(1) + chunk) * S * D + tile, there, 0)
    for site in range(chunk * n_sites, tl.minimum((chunk + 1) * n_sites, N), AHEAD):
        xs, dts, intos, outs = (), (), (), ()
        for i in tl.static_range(AHEAD):
            at, inside = row * N + site + i, site + i < N
            xs += (tl.load(x + at * D + channels, inside & (channels < D), 0),)
            dts += (tl.load(dt + at * D + channels, inside & (channels < D), 0),)
            intos += (tl.load(into + at * S + states, inside & (states < S), 0),)
            outs += (tl.load(out + at * S + states, inside & (states < S), 0),)
        for i in tl.static_range(AHEAD):
            put_D = dts[i] * xs[i]
            h_SD = tl.exp(dts[i][None, :] * rate_SD) * h_SD + intos[i][:, None] * put_D[None, :]
            y_D = tl.sum(outs[i][:, None] * h_SD, 0) + skip_D * xs[i]
            at = row * N + site + i
            tl.store(y + at * D + channels, y_D, (site + i < N) & (channels < D))


@triton.jit
def pulls_kernel(
    dt, rate, out, dy, pulls, totals, N, D, S, n_sites, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
    STATES: tl.constexpr,
):  # fmt: skip
    """Fill ``pulls`` (B, C, S, D), what each chunk by itself pulls on the states before it, and
    ``totals``."""
    row, chunk, channels, states, there, tile = _places(D, S, BLOCK, STATES)
    rate_SD = tl.load(rate + tile, there, 0)
    pull_SD = tl.zeros((STATES, BLOCK), dt.dtype.element_ty)
    total_D = tl.zeros((BLOCK,), dt.dtype.element_ty)
    last = (chunk + 1) * n_sites - 1
    for n_done in range(0, n_sites, AHEAD):
        dts, outs, dys = (), (), ()
        for i in tl.static_range(AHEAD):
            site = last - n_done - i
            at, inside = row * N + site, site < N
            dts += (tl.load(dt + at * D + channels, inside & (channels < D), 0),)
            dys += (tl.load(dy + at * D + channels, inside & (channels < D), 0),)
            outs += (tl.load(out + at * S + states, inside & (states < S), 0),)
        for i in tl.static_range(AHEAD):
            dh_SD = pull_SD + outs[i][:, None] * dys[i][None, :]
            pull_SD = tl.exp(dts[i][None, :] * rate_SD) * dh_SD
            total_D += dts[i]
    at = row * tl.num_programs(1) + chunk
    tl.store(pulls + at * S * D + tile, pull_SD, there)
    tl.store(totals + at * D + channels, total_D, channels < D)


@triton.jit
def backward_kernel(
    x, dt, rate, into, out, skip, borders, arriving, dy, again, dx, ddt, dinto, dout, drate, dskip,
    N, D, S, n_sites, BLOCK: tl.constexpr, AHEAD: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Fill ``dx`` and ``ddt`` (B, N, D), and parts: ``dinto`` and ``dout`` (G, B, N, S), ``drate``
    (B, C, S, D) and ``dskip`` (B, C, D).

    ``again`` (B, C n_sites / AHEAD, S, D) is room for the states in front of each ``AHEAD`` sites,
    which the sweep to the left starts from.
    """
    row, chunk, channels, states, there, tile = _places(D, S, BLOCK, STATES)
    rate_SD, skip_D = tl.load(rate + tile, there, 0), tl.load(skip + channels, channels < D, 0)
    of_chunk = (row * tl.num_programs(1) + chunk) * S * D
    of_again = again + of_chunk * (n_sites // AHEAD) + tile
    h_SD = tl.load(borders + of_chunk + tile, there, 0)
    n_parts = n_sites // AHEAD
    for part in range(n_parts):
        tl.store(of_again + part * S * D, h_SD, there)
        for i in tl.static_range(AHEAD):
            site = chunk * n_sites + part * AHEAD + i
            at, inside = row * N + site, (site < N) & (channels < D)
            dt_D = tl.load(dt + at * D + channels, inside, 0)
            put_D = dt_D * tl.load(x + at * D + channels, inside, 0)
            into_S = tl.load(into + at * S + states, (site < N) & (states < S), 0)
            h_SD = tl.exp(dt_D[None, :] * rate_SD) * h_SD + into_S[:, None] * put_D[None, :]
    pull_SD = tl.load(arriving + of_chunk + tile, there, 0)
    drate_SD, dskip_D = tl.zeros_like(h_SD), tl.zeros_like(skip_D)
    for n_done in range(n_parts):
        part = n_parts - 1 - n_done
        h_SD = tl.load(of_again + part * S * D, there, 0)
        hs, xs, dts, intos = (h_SD,), (), (), ()
        for i in tl.static_range(AHEAD):
            site = chunk * n_sites + part * AHEAD + i
            at, inside = row * N + site, (site < N) & (channels < D)
            dts += (tl.load(dt + at * D + channels, inside, 0),)
            xs += (tl.load(x + at * D + channels, inside, 0),)
            intos += (tl.load(into + at * S + states, (site < N) & (states < S), 0),)
            decay_SD = tl.exp(dts[i][None, :] * rate_SD)
            h_SD = decay_SD * h_SD + intos[i][:, None] * (dts[i] * xs[i])[None, :]
            hs += (h_SD,)
        for j in tl.static_range(AHEAD):
            site = chunk * n_sites + part * AHEAD + (AHEAD - 1 - j)
            at, inside = row * N + site, (site < N) & (channels < D)
            stated = (site < N) & (states < S)
            dy_D = tl.load(dy + at * D + channels, inside, 0)
            out_S = tl.load(out + at * S + states, stated, 0)
            dh_SD = pull_SD + out_S[:, None] * dy_D[None, :]
            of_group = (tl.program_id(0) * tl.num_programs(2).to(tl.int64) * N + at) * S + states
            tl.store(
                dinto + of_group,
                tl.sum(dh_SD * (dts[AHEAD - 1 - j] * xs[AHEAD - 1 - j])[None, :], 1),
                stated,
            )
            tl.store(dout + of_group, tl.sum(hs[AHEAD - j] * dy_D[None, :], 1), stated)
            dput_D = tl.sum(dh_SD * intos[AHEAD - 1 - j][:, None], 0)
            pull_SD = dh_SD * tl.exp(dts[AHEAD - 1 - j][None, :] * rate_SD)
            dpower_SD = pull_SD * hs[AHEAD - 1 - j]
            drate_SD += dpower_SD * dts[AHEAD - 1 - j][None, :]
            dskip_D += dy_D * xs[AHEAD - 1 - j]
            ddt_D = dput_D * xs[AHEAD - 1 - j] + tl.sum(dpower_SD * rate_SD, 0)
            tl.store(dx + at * D + channels, dput_D * dts[AHEAD - 1 - j] + dy_D * skip_D, inside)
            tl.store(ddt + at * D + channels, ddt_D, inside)
    tl.store(drate + of_chunk + tile, drate_SD, there)
    at = row * tl.num_programs(1) + chunk
    tl.store(dskip + at * D + channels, dskip_D, channels < D)
