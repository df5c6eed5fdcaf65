"""The recurrences of the causal resolvent in Triton.

Shapes: B rows, N sites, K value channels, H heads, F = 2 (1 + K) feature planes, C time chunks.
A lane is a row, a value channel and a head, ``L = B max(1, K) H`` of them with heads innermost, so
that neighbouring threads read neighbouring numbers; lanes of one head run the same ``g``. A
program is a block of lanes and one chunk. What ``AHEAD`` sites need is loaded before the first of
them is computed: a load is slow, and the compiler moves none across a store.
"""

# mypy: ignore-errors
# Hints of a kernel's arguments are Triton's own, and a tuple of loads grows as it is unrolled.

import triton
import triton.language as tl

VARYING = ["N", "n_sites", "n_chunks"]
"""Arguments that change from batch to batch: no kernel is compiled anew for a special value."""


@triton.jit
def of_lanes(lanes, K, H, n_lanes):
    """Return whether each lane is there, is the first of its head, its row and its head."""
    width = tl.maximum(K, 1) * H
    there = lanes < n_lanes
    row = lanes // width
    channel = (lanes % width) // H
    return there, channel == 0, row.to(tl.int64), lanes % width, lanes % H


@triton.jit
def times(a_re, a_im, b_re, b_im):
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def _over(a_re, a_im, b_re, b_im):
    scale = 1 / (b_re * b_re + b_im * b_im)
    return (a_re * b_re + a_im * b_im) * scale, (a_im * b_re - a_re * b_im) * scale


@triton.jit
def _step(h, energy, eta, g_re, g_im):
    """``1 / (h - E - i eta - g)``, with ``1 / (a - i c) = (a + i c) / (a^2 + c^2)``."""
    a, c = h - energy - g_re, eta + g_im
    scale = 1 / (a * a + c * c)
    return a * scale, c * scale


@triton.jit(do_not_specialize=VARYING)
def maps_kernel(
    h, x, energy, eta, maps, N, K, H, n_lanes, n_sites, BLOCK: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """Fill ``maps`` (C, 13, L), float64: what each chunk but the last makes of any state before.

    With ``g_t = p_{t-1} / p_t`` and ``y_t = q_t / p_t`` both recurrences are linear: ``p_t = (h_t
    - z) p_{t-1} - p_{t-2}``, ``q_t = x_t p_{t-1} - q_{t-1}``. Columns a and b are ``(p, p of the
    site before, q)`` behind the chunk from ``p_{-1} = 1``, and from ``p_{-2} = 1``; ``sign`` is
    ``q`` from ``q_{-1} = 1``. All of one lane may be multiplied by one number, and is behind
    every ``AHEAD`` sites. Between, a column may grow by ``|h - z|`` a site: at 16 sites that
    overflows float64 from ``|h|`` of about 1e19 on, and what is behind is NaN.
    """
    chunk = tl.program_id(1)
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there, _, row, inner, head = of_lanes(lanes, K, H, n_lanes)
    z_re = tl.load(energy + head, there, 0).to(tl.float64)
    z_im = tl.load(eta + head, there, 1).to(tl.float64)
    of_h, of_x = h + row * N * H + head, x + row * N * K * H + inner
    valued = there & (K > 0)
    zero = tl.zeros((BLOCK,), tl.float64)
    one = zero + 1
    a_re, a_im, a_was_re, a_was_im, a_q_re, a_q_im = one, zero, zero, zero, zero, zero
    b_re, b_im, b_was_re, b_was_im, b_q_re, b_q_im = zero, zero, one, zero, zero, zero
    sign = one
    first = (chunk * n_sites).to(tl.int64)
    for site in range(first, first + n_sites, AHEAD):
        hs, xs = (), ()
        for i in tl.static_range(AHEAD):
            hs += (tl.load(of_h + (site + i) * H, there, 0),)
            xs += (tl.load(of_x + (site + i) * K * H, valued, 0),)
        for i in tl.static_range(AHEAD):
            gap, value = hs[i].to(tl.float64) - z_re, xs[i].to(tl.float64)
            a_q_re, a_q_im = value * a_re - a_q_re, value * a_im - a_q_im
            b_q_re, b_q_im = value * b_re - b_q_re, value * b_im - b_q_im
            sign = -sign
            next_re = gap * a_re + z_im * a_im - a_was_re
            next_im = gap * a_im - z_im * a_re - a_was_im
            a_was_re, a_was_im, a_re, a_im = a_re, a_im, next_re, next_im
            next_re = gap * b_re + z_im * b_im - b_was_re
            next_im = gap * b_im - z_im * b_re - b_was_im
            b_was_re, b_was_im, b_re, b_im = b_re, b_im, next_re, next_im
        size = tl.abs(a_re) + tl.abs(a_im) + tl.abs(b_re) + tl.abs(b_im)
        scale = 1 / (size + tl.abs(a_was_re) + tl.abs(b_was_re))
        a_re, a_im, a_was_re, a_was_im = (
            a_re * scale,
            a_im * scale,
            a_was_re * scale,
            a_was_im * scale,
        )
        b_re, b_im, b_was_re, b_was_im = (
            b_re * scale,
            b_im * scale,
            b_was_re * scale,
            b_was_im * scale,
        )
        a_q_re, a_q_im, b_q_re, b_q_im = (
            a_q_re * scale,
            a_q_im * scale,
            b_q_re * scale,
            b_q_im * scale,
        )
        sign = sign * scale
    of_maps = maps + chunk * 13 * n_lanes + lanes
    entries = (a_re, a_im, a_was_re, a_was_im, a_q_re, a_q_im)
    entries += (b_re, b_im, b_was_re, b_was_im, b_q_re, b_q_im, sign)
    for j in tl.static_range(13):
        tl.store(of_maps + j * n_lanes, entries[j], there)


@triton.jit
def _of_state(state, row, inner, K, H):
    """Where a lane's ``Re g, Im g, Re y, Im y`` lie in (B, F, H)."""
    of_row = state + row * (2 * (1 + K) * H)
    return (
        of_row + inner % H,
        of_row + H + inner % H,
        of_row + 2 * H + inner,
        of_row + (2 + K) * H + inner,
    )


@triton.jit(do_not_specialize=VARYING)
def starts_kernel(
    maps, state, starts, K, H, n_lanes, n_chunks, BLOCK: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """Fill ``starts`` (C, 4, L): ``g`` and ``y`` in front of each chunk but the first.

    ``starts[c - 1]`` is in front of chunk c; the first one starts from ``state``.
    """
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there, _, row, inner, _ = of_lanes(lanes, K, H, n_lanes)
    valued = there & (K > 0)
    at_g_re, at_g_im, at_y_re, at_y_im = _of_state(state, row, inner, K, H)
    g_re, g_im = (
        tl.load(at_g_re, there, 0).to(tl.float64),
        tl.load(at_g_im, there, 0).to(tl.float64),
    )
    y_re, y_im = (
        tl.load(at_y_re, valued, 0).to(tl.float64),
        tl.load(at_y_im, valued, 0).to(tl.float64),
    )
    for first in range(0, n_chunks, AHEAD):
        entries = ()
        for i in tl.static_range(AHEAD):
            known = there & (first + i < n_chunks)
            of_map = maps + (first + i) * 13 * n_lanes + lanes
            for j in tl.static_range(13):
                entries += (tl.load(of_map + j * n_lanes, known, 1),)
        for i in tl.static_range(AHEAD):
            p_re, p_im = times(entries[13 * i + 6], entries[13 * i + 7], g_re, g_im)
            was_re, was_im = times(entries[13 * i + 8], entries[13 * i + 9], g_re, g_im)
            q_re, q_im = times(entries[13 * i + 10], entries[13 * i + 11], g_re, g_im)
            p_re, p_im = p_re + entries[13 * i], p_im + entries[13 * i + 1]
            was_re, was_im = was_re + entries[13 * i + 2], was_im + entries[13 * i + 3]
            q_re = q_re + entries[13 * i + 4] + entries[13 * i + 12] * y_re
            q_im = q_im + entries[13 * i + 5] + entries[13 * i + 12] * y_im
            g_re, g_im = _over(was_re, was_im, p_re, p_im)
            y_re, y_im = _over(q_re, q_im, p_re, p_im)
            known = there & (first + i < n_chunks)
            of_start = starts + (first + i) * 4 * n_lanes + lanes
            tl.store(of_start, g_re, known)
            tl.store(of_start + n_lanes, g_im, known)
            tl.store(of_start + 2 * n_lanes, y_re, known)
            tl.store(of_start + 3 * n_lanes, y_im, known)


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    h, x, energy, eta, state, starts, features, N, K, H, n_lanes, n_sites, BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Fill ``features`` (B, N, F, H), each chunk from what is in front of it."""
    chunk = tl.program_id(1)
    real = features.dtype.element_ty
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there, leads, row, inner, head = of_lanes(lanes, K, H, n_lanes)
    valued, leads = there & (K > 0), there & leads
    z_re, z_im = tl.load(energy + head, there, 0), tl.load(eta + head, there, 1)
    at_g_re, at_g_im, at_y_re, at_y_im = _of_state(state, row, inner, K, H)
    is_first = chunk == 0
    of_start = starts + (chunk - 1) * 4 * n_lanes + lanes
    later = there & (chunk > 0)
    g_re = tl.load(at_g_re, there & is_first, 0) + tl.load(of_start, later, 0)
    g_im = tl.load(at_g_im, there & is_first, 0) + tl.load(of_start + n_lanes, later, 0)
    y_re = tl.load(at_y_re, valued & is_first, 0) + tl.load(of_start + 2 * n_lanes, later, 0)
    y_im = tl.load(at_y_im, valued & is_first, 0) + tl.load(of_start + 3 * n_lanes, later, 0)
    of_h, of_x = h + row * N * H + head, x + row * N * K * H + inner
    F = 2 * (1 + K)
    of_g = features + row * N * F * H + head
    of_y = features + row * N * F * H + 2 * H + inner
    first = (chunk * n_sites).to(tl.int64)
    for site in range(first, tl.minimum(first + n_sites, N), AHEAD):
        hs, xs = (), ()
        for i in tl.static_range(AHEAD):
            inside = site + i < N
            hs += (tl.load(of_h + (site + i) * H, there & inside, 0),)
            xs += (tl.load(of_x + (site + i) * K * H, valued & inside, 0),)
        for i in tl.static_range(AHEAD):
            inside = site + i < N
            g_re, g_im = _step(hs[i].to(real), z_re, z_im, g_re, g_im)
            pull = xs[i].to(real) - y_re
            y_re, y_im = g_re * pull + g_im * y_im, g_im * pull - g_re * y_im
            at = (site + i) * F * H
            tl.store(of_g + at, g_re, leads & inside)
            tl.store(of_g + at + H, g_im, leads & inside)
            tl.store(of_y + at, y_re, valued & inside)
            tl.store(of_y + at + K * H, y_im, valued & inside)
