"""The reverse recurrences of the causal resolvent in Triton, from the right to the left.

Shapes and lanes as in ``tridiagonal_triton_kernels``. ``u`` and ``v`` are what a site hands to the
one before it: ``y`` there gets ``-u`` of gradient, ``g`` gets ``v``. Each lane runs the part of
``v`` that comes from its own value channel; the parts add up, since ``v`` is linear.
"""

# mypy: ignore-errors
# Hints of a kernel's arguments are Triton's own, and a tuple of loads grows as it is unrolled.

import triton
import triton.language as tl

from bkray.ops.tridiagonal_triton_kernels import VARYING, of_lanes, times


@triton.jit
def _back(sites, grads, u_re, u_im, v_re, v_im):
    """``u = g' (dy - u)`` of the later site; ``v = (g^2)' (dg + v) + y' u``. Returns both."""
    g_re, g_im, y_re, y_im = sites
    dg_re, dg_im, dy_re, dy_im = grads
    dy_re, dy_im = dy_re - u_re, dy_im - u_im
    u_re, u_im = g_re * dy_re + g_im * dy_im, g_re * dy_im - g_im * dy_re
    square_re, square_im = g_re * g_re - g_im * g_im, (g_re + g_re) * g_im
    dg_re, dg_im = dg_re + v_re, dg_im + v_im
    v_re = y_re * u_re + y_im * u_im + square_re * dg_re + square_im * dg_im
    v_im = y_re * u_im - y_im * u_re + square_re * dg_im - square_im * dg_re
    return u_re, u_im, v_re, v_im


@triton.jit
def _load_four(of_g, of_y, at, K, H, leads, valued):
    """``g`` and ``y``, or their gradients, of one site; 0 where a lane has none."""
    return (
        tl.load(of_g + at, leads, 0),
        tl.load(of_g + at + H, leads, 0),
        tl.load(of_y + at, valued, 0),
        tl.load(of_y + at + K * H, valued, 0),
    )


@triton.jit(do_not_specialize=VARYING)
def back_maps_kernel(
    features, grad, maps, N, K, H, n_lanes, n_sites, BLOCK: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """Fill ``maps`` (C, 8, L): what each chunk but the first makes of any ``u`` and ``v`` behind.

    ``u -> P u + U`` and ``v -> P^2 v + Q u + V``, with ``P`` the product of ``-g'``; in the order
    P, U, Q, V. ``maps[c - 1]`` is that of chunk c.
    """
    chunk = tl.program_id(1) + 1
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there, leads, row, inner, head = of_lanes(lanes, K, H, n_lanes)
    valued, leads = there & (K > 0), there & leads
    F = 2 * (1 + K)
    at_row = row * N * F * H
    of_g, of_y = features + at_row + head, features + at_row + 2 * H + inner
    of_dg, of_dy = grad + at_row + head, grad + at_row + 2 * H + inner
    zero = tl.zeros((BLOCK,), features.dtype.element_ty)
    p_re, p_im, q_re, q_im = zero + 1, zero, zero, zero
    u_re, u_im, v_re, v_im = zero, zero, zero, zero
    first = (chunk * n_sites).to(tl.int64)
    last = tl.minimum(first + n_sites, N) - 1
    for n_done in range(0, last + 1 - first, AHEAD):
        sites, grads = (), ()
        for i in tl.static_range(AHEAD):
            site = last - n_done - i
            inside = site >= first
            at = site * F * H
            sites += (_load_four(of_g, of_y, at, K, H, there & inside, valued & inside),)
            grads += (_load_four(of_dg, of_dy, at, K, H, leads & inside, valued & inside),)
        for i in tl.static_range(AHEAD):
            if last - n_done - i >= first:
                u_re, u_im, v_re, v_im = _back(sites[i], grads[i], u_re, u_im, v_re, v_im)
                g_re, g_im, y_re, y_im = sites[i]
                p_re, p_im = -(g_re * p_re + g_im * p_im), g_im * p_re - g_re * p_im
                square_re, square_im = g_re * g_re - g_im * g_im, (g_re + g_re) * g_im
                q_re, q_im = (
                    square_re * q_re + square_im * q_im,
                    square_re * q_im - square_im * q_re,
                )
                q_re, q_im = q_re + y_re * p_re + y_im * p_im, q_im + y_re * p_im - y_im * p_re
    of_maps = maps + (chunk - 1) * 8 * n_lanes + lanes
    entries = (p_re, p_im, u_re, u_im, q_re, q_im, v_re, v_im)
    for j in tl.static_range(8):
        tl.store(of_maps + j * n_lanes, entries[j], there)


@triton.jit(do_not_specialize=VARYING)
def ends_kernel(maps, ends, n_lanes, n_chunks, BLOCK: tl.constexpr, AHEAD: tl.constexpr):
    """Fill ``ends`` (C, 4, L): ``u`` and ``v`` of the site behind each chunk but the last one.

    ``maps[c]`` leads from ``ends[c + 1]`` to ``ends[c]``; behind the last chunk both are 0.
    """
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = lanes < n_lanes
    zero = tl.zeros((BLOCK,), maps.dtype.element_ty)
    u_re, u_im, v_re, v_im = zero, zero, zero, zero
    for n_done in range(0, n_chunks, AHEAD):
        entries = ()
        for i in tl.static_range(AHEAD):
            chunk = n_chunks - 1 - n_done - i
            of_map = maps + chunk * 8 * n_lanes + lanes
            for j in tl.static_range(8):
                entries += (tl.load(of_map + j * n_lanes, there & (chunk >= 0), 0),)
        for i in tl.static_range(AHEAD):
            chunk = n_chunks - 1 - n_done - i
            p_re, p_im = entries[8 * i], entries[8 * i + 1]
            square_re, square_im = times(p_re, p_im, p_re, p_im)
            v_re, v_im = times(square_re, square_im, v_re, v_im)
            from_re, from_im = times(entries[8 * i + 4], entries[8 * i + 5], u_re, u_im)
            v_re, v_im = v_re + from_re + entries[8 * i + 6], v_im + from_im + entries[8 * i + 7]
            u_re, u_im = times(p_re, p_im, u_re, u_im)
            u_re, u_im = u_re + entries[8 * i + 2], u_im + entries[8 * i + 3]
            of_end = ends + chunk * 4 * n_lanes + lanes
            known = there & (chunk >= 0)
            tl.store(of_end, u_re, known)
            tl.store(of_end + n_lanes, u_im, known)
            tl.store(of_end + 2 * n_lanes, v_re, known)
            tl.store(of_end + 3 * n_lanes, v_im, known)


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    features, grad, ends, dh, dx, sums, dstate, N, K, H, n_lanes, n_sites, n_chunks,
    BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Fill ``dx`` (B, N, K, H), and each lane's part of the rest: ``dh`` (B, N, max(1, K), H),
    ``sums`` (C, 2, L) of ``v``, and ``dstate`` (4, L), ``u`` and ``v`` of the first site."""
    chunk = tl.program_id(1)
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there, leads, row, inner, head = of_lanes(lanes, K, H, n_lanes)
    valued, leads = there & (K > 0), there & leads
    F = 2 * (1 + K)
    at_row = row * N * F * H
    of_g, of_y = features + at_row + head, features + at_row + 2 * H + inner
    of_dg, of_dy = grad + at_row + head, grad + at_row + 2 * H + inner
    width = tl.maximum(K, 1) * H
    of_dh, of_dx = dh + row * N * width + inner, dx + row * N * K * H + inner
    of_end = ends + chunk * 4 * n_lanes + lanes
    behind = there & (chunk < n_chunks - 1)
    u_re, u_im = tl.load(of_end, behind, 0), tl.load(of_end + n_lanes, behind, 0)
    v_re, v_im = tl.load(of_end + 2 * n_lanes, behind, 0), tl.load(of_end + 3 * n_lanes, behind, 0)
    zero = tl.zeros((BLOCK,), features.dtype.element_ty)
    sum_re, sum_im = zero, zero
    first = (chunk * n_sites).to(tl.int64)
    last = tl.minimum(first + n_sites, N) - 1
    for n_done in range(0, last + 1 - first, AHEAD):
        sites, grads = (), ()
        for i in tl.static_range(AHEAD):
            site = last - n_done - i
            inside = site >= first
            at = site * F * H
            sites += (_load_four(of_g, of_y, at, K, H, there & inside, valued & inside),)
            grads += (_load_four(of_dg, of_dy, at, K, H, leads & inside, valued & inside),)
        for i in tl.static_range(AHEAD):
            site = last - n_done - i
            if site >= first:
                u_re, u_im, v_re, v_im = _back(sites[i], grads[i], u_re, u_im, v_re, v_im)
                sum_re, sum_im = sum_re + v_re, sum_im + v_im
                tl.store(of_dh + site * width, -v_re, there)
                tl.store(of_dx + site * K * H, u_re, valued)
    of_sums = sums + chunk * 2 * n_lanes + lanes
    tl.store(of_sums, sum_re, there)
    tl.store(of_sums + n_lanes, sum_im, there)
    is_first = there & (chunk == 0)
    tl.store(dstate + lanes, u_re, is_first)
    tl.store(dstate + n_lanes + lanes, u_im, is_first)
    tl.store(dstate + 2 * n_lanes + lanes, v_re, is_first)
    tl.store(dstate + 3 * n_lanes + lanes, v_im, is_first)
