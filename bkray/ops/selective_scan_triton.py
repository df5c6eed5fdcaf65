"""The selective scan on a GPU: Triton kernels, parallel over rows, channels and time.

Shapes: B rows, N sites, D channels, S states per channel, C time chunks, G blocks of channels. A
first pass finds what each chunk of time adds to the states, a short one goes from chunk to chunk
(the states in front of a chunk, which backward needs too), the last one computes the sites.
Backward also writes and reads the states in front of every ``BACK_AHEAD_SITES`` sites, for want of
registers: at 16 states 64 bytes per site and channel beyond those of inputs and outputs. They take
``4 S / BACK_AHEAD_SITES`` bytes per site and channel while backward runs: 32 at 16 states, as much
as eight float32 tensors of the inputs' size, 4.3 GB for 131,072 sites of 1,024 channels.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from bkray.errors import ConfigError
from bkray.ops import selective_scan_triton_kernels as kernels

WARP = BLOCK_CHANNELS = 32
"""One warp, so that a channel's states lie in one thread's registers."""
AHEAD_SITES, BACK_AHEAD_SITES = 4, 2
"""Loaded at once; more do not fit the registers beside 16 states of a channel."""
CHUNK_SITES = 128
"""Sites; the states kept of a chunk are then a share of ``S / 128`` of what a channel reads."""


class _Plan(NamedTuple):
    """Blocks of channels, chunks, rows and the sizes that kernels are told."""

    grid: tuple[int, int, int]
    sizes: tuple[int, int, int, int]
    constants: dict[str, int]

    def launch(self, ahead: int) -> dict[str, int]:
        return {**self.constants, "AHEAD": ahead}


def forward(
    x_BND: Tensor,
    dt_BND: Tensor,
    rate_SD: Tensor,
    into_BNS: Tensor,
    out_BNS: Tensor,
    skip_D: Tensor,
    state_BSD: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``y``, the last state and the states in front of each chunk, (B, C, S, D)."""
    given = (x_BND, dt_BND, rate_SD, into_BNS, out_BNS, skip_D, state_BSD)
    x, dt, rate, into, out, skip, state = (t.contiguous() for t in given)
    plan = _plan(x, rate)
    G, C, B = plan.grid
    ends, totals = x.new_empty(B, C, *rate.shape), x.new_empty(B, C, x.shape[2])
    borders, last, y = torch.empty_like(ends), torch.empty_like(state), torch.empty_like(x)
    launch = plan.launch(AHEAD_SITES)
    # Triton launches on the current device.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.ends_kernel[plan.grid](x, dt, rate, into, ends, totals, *plan.sizes, **launch)
        kernels.borders_kernel[(G, 1, B)](
            rate, ends, totals, state, borders, last, *plan.sizes[1:3], C, 0, 1, **plan.constants
        )
        kernels.forward_kernel[plan.grid](
            x, dt, rate, into, out, skip, borders, y, *plan.sizes, **launch
        )
    return y, last, borders


def backward(
    x_BND: Tensor,
    dt_BND: Tensor,
    rate_SD: Tensor,
    into_BNS: Tensor,
    out_BNS: Tensor,
    skip_D: Tensor,
    borders_BCSD: Tensor,
    dy_BND: Tensor,
    dlast_BSD: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of the inputs of ``forward``; states are computed once more."""
    given = (x_BND, dt_BND, rate_SD, into_BNS, out_BNS, skip_D, dy_BND, dlast_BSD)
    x, dt, rate, into, out, skip, dy, dlast = (t.contiguous() for t in given)
    plan = _plan(x, rate)
    G, C, B = plan.grid
    pulls, totals = torch.empty_like(borders_BCSD), x.new_empty(B, C, x.shape[2])
    arriving, dstate = torch.empty_like(pulls), torch.empty_like(dlast)
    launch = plan.launch(BACK_AHEAD_SITES)
    again = x.new_empty(B, C * plan.sizes[3] // BACK_AHEAD_SITES, *rate.shape)
    dx, ddt = torch.empty_like(x), torch.empty_like(dt)
    dinto, dout = x.new_empty(G, *into.shape), x.new_empty(G, *out.shape)
    drate, dskip = torch.empty_like(pulls), torch.empty_like(totals)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.pulls_kernel[plan.grid](dt, rate, out, dy, pulls, totals, *plan.sizes, **launch)
        kernels.borders_kernel[(G, 1, B)](
            rate, pulls, totals, dlast, arriving, dstate, *plan.sizes[1:3], C, C - 1, -1,
            **plan.constants,
        )  # fmt: skip
        kernels.backward_kernel[plan.grid](
            x, dt, rate, into, out, skip, borders_BCSD, arriving, dy, again, dx, ddt, dinto, dout,
            drate, dskip, *plan.sizes, **launch,
        )  # fmt: skip
    return dx, ddt, drate.sum((0, 1)), dinto.sum(0), dout.sum(0), dskip.sum((0, 1)), dstate


def _plan(x_BND: Tensor, rate_SD: Tensor) -> _Plan:
    (B, N, D), S = x_BND.shape, len(rate_SD)
    if x_BND.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ConfigError(
            f"form=triton needs a GPU, or TRITON_INTERPRET=1 in the environment, got "
            f"{x_BND.device}"
        )
    grid = triton.cdiv(D, BLOCK_CHANNELS), triton.cdiv(N, CHUNK_SITES), B
    constants = {"BLOCK": BLOCK_CHANNELS, "STATES": triton.next_power_of_2(S)}
    return _Plan(grid, (N, D, S, CHUNK_SITES), {**constants, "num_warps": BLOCK_CHANNELS // WARP})
