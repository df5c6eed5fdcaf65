"""The selective scan in whole-tensor operations of torch, for any device without a kernel.

Shapes: B rows, N sites, D channels, S states per channel, M blocks of sites, T sites of a block.
States of all channels are there for one block of sites at a time.
"""

import torch
from torch import Tensor

from bkray.ops.linear_recurrence import doubling

BLOCK_SITES = 64


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
    said, borders = [], [state_BSD]
    sites = (torch.split(t, BLOCK_SITES, 1) for t in (x_BND, dt_BND, into_BNS, out_BNS))
    for x, dt, into, out in zip(*sites, strict=True):
        y, behind = _block(x, dt, rate_SD, into, out, skip_D, borders[-1])
        said.append(y)
        borders.append(behind)
    return torch.cat(said, 1), borders[-1], torch.stack(borders[:-1], 1)


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
    """Return the gradients of the inputs of ``forward``: autograd, from the last block on."""
    of_sites = (x_BND, dt_BND, into_BNS, out_BNS)
    # Made at once: pieces kept between large ones that are freed would hold on to their memory.
    grad_of_sites = [torch.empty_like(t) for t in of_sites]
    blocks = list(zip(*(torch.split(t, BLOCK_SITES, 1) for t in (*of_sites, dy_BND)), strict=True))
    places = list(zip(*(torch.split(t, BLOCK_SITES, 1) for t in grad_of_sites), strict=True))
    dstate, drate, dskip = dlast_BSD, torch.zeros_like(rate_SD), torch.zeros_like(skip_D)
    for i in reversed(range(len(blocks))):
        x, dt, into, out, dy = blocks[i]
        inputs = (x, dt, rate_SD, into, out, skip_D, borders_BMSD[:, i])
        leaves = [t.detach().requires_grad_() for t in inputs]
        with torch.enable_grad():
            y_and_last = _block(*leaves)
        grads = torch.autograd.grad(y_and_last, leaves, (dy, dstate))
        for place, part in zip(places[i], (grads[0], grads[1], grads[3], grads[4]), strict=True):
            place.copy_(part)
        drate, dskip, dstate = drate + grads[2], dskip + grads[5], grads[6]
    dx, ddt, dinto, dout = grad_of_sites
    return dx, ddt, drate, dinto, dout, dskip, dstate


def _block(
    x_BTD: Tensor,
    dt_BTD: Tensor,
    rate_SD: Tensor,
    into_BTS: Tensor,
    out_BTS: Tensor,
    skip_D: Tensor,
    state_BSD: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return ``y`` of a block of sites and the state behind it."""
    decay_BTSD = (dt_BTD[:, :, None] * rate_SD).exp()
    put_BTSD = into_BTS[..., None] * (dt_BTD * x_BTD)[:, :, None]
    h_BTSD = doubling(decay_BTSD, put_BTSD, state_BSD)
    with torch.autocast(x_BTD.device.type, enabled=False):  # would read in bf16
        read_BTD = (out_BTS[:, :, None] @ h_BTSD)[:, :, 0]
    # A copy: a view would keep the states of all blocks in memory.
    return read_BTD + skip_D * x_BTD, h_BTSD[:, -1].clone()
