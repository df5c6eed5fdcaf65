"""The selective scan on the CPU: numba, SIMD lanes over channels, tasks over rows and channels.

Shapes: B rows, N sites, D channels, S states per channel, M blocks of sites, G groups of channels.
"""

import math

import torch
from numba import types
from torch import Tensor

from bkray.ops.selective_scan_kernels import BLOCK_SITES, backward_tasks, forward_tasks
from bkray.ops.tasks import lane_width, run_tasks, shares, whole_lanes, width_of

SERIAL_EXPONENTIALS = 1 << 17
"""Below this a second thread costs more than it saves (waking it takes tens of microseconds)."""


def forward(
    x_BND: Tensor,
    dt_BND: Tensor,
    rate_SD: Tensor,
    into_BNS: Tensor,
    out_BNS: Tensor,
    skip_D: Tensor,
    state_BSD: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``y``, the last state and the states in front of each block, (B, M, S, D)."""
    B, N, D = x_BND.shape
    x, dt, rate, skip, state = whole_lanes(x_BND, dt_BND, _in_twos(rate_SD), skip_D, state_BSD)
    y, last = x.new_empty(x.shape), state.clone(memory_format=torch.contiguous_format)
    borders = x.new_empty(B, -(-N // BLOCK_SITES), *rate.shape)
    G, n_threads = shares(x, x.numel() * len(rate) > SERIAL_EXPONENTIALS)
    plan = ((types.int64, G), width_of(lane_width(x)))
    tensors = (x, dt, rate, into_BNS, out_BNS, skip, last, y, borders)
    run_tasks(forward_tasks, plan, tensors, n_threads)
    return y[..., :D], last[..., :D], borders


def backward(
    x_BND: Tensor,
    dt_BND: Tensor,
    rate_SD: Tensor,
    into_BNS: Tensor,
    out_BNS: Tensor,
    skip_D: Tensor,
    borders_BMSD: Tensor,
    dy_BND: Tensor,
    dlast_BSD: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of the inputs of ``forward``; states are computed once more."""
    B, _, D = x_BND.shape
    x, dt, rate, skip, dy = whole_lanes(x_BND, dt_BND, _in_twos(rate_SD), skip_D, dy_BND)
    dstate = whole_lanes(dlast_BSD)[0].clone(memory_format=torch.contiguous_format)
    dx, ddt = x.new_empty(x.shape), x.new_empty(x.shape)
    drate = torch.zeros(B, *rate.shape, dtype=torch.float64)
    dskip = torch.zeros(B, 1, len(skip), dtype=torch.float64)
    G, n_threads = shares(x, x.numel() * len(rate) > SERIAL_EXPONENTIALS)
    dinto, dout = (x.new_empty(G, *into_BNS.shape) for _ in range(2))
    log2 = x.new_tensor([math.log(2)])
    plan = ((types.int64, G), width_of(lane_width(x)))
    inputs = (x, dt, rate, into_BNS, out_BNS, skip, borders_BMSD, dy, dstate, log2)
    run_tasks(backward_tasks, plan, (*inputs, dx, ddt, drate, dskip, dinto, dout), n_threads)
    of_channels = (drate.sum(0).to(x.dtype)[:, :D], dskip.sum((0, 1)).to(x.dtype)[:D])
    of_sites = (dinto.sum(0), dout.sum(0))
    return dx[..., :D], ddt[..., :D], of_channels[0], *of_sites, of_channels[1], dstate[..., :D]


def _in_twos(rate_SD: Tensor) -> Tensor:
    """Return rates as powers of two: those are cheaper than powers of e."""
    return rate_SD / math.log(2)
