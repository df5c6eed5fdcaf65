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
    dstate, of_blocks = dlast_BSD, []
    drate, dskip = torch.zeros_like(rate_SD), torch.zeros_like(skip_D)
    sites = (torch.split(t, BLOCK_SITES, 1) for t in (x_BND, dt_BND, into_BNS, out_BNS, dy_BND))
    blocks = list(zip(*sites, borders_BMSD.unbind(1), strict=True))
    for x, dt, into, out, dy, state in reversed(blocks):
        leaves = [t.detach().requires_grad_() for t in (x, dt, rate_SD, into, out, skip_D, state)]
        with torch.enable_grad():
            y_and_last = _block(*leaves)
        grads = torch.autograd.grad(y_and_last, leaves, (dy, dstate))
        of_blocks.append((grads[0], grads[1], grads[3], grads[4]))
        drate, dskip, dstate = drate + grads[2], dskip + grads[5], grads[6]
    dx, ddt, dinto, dout = (torch.cat(part[::-1], 1) for part in zip(*of_blocks, strict=True))
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
    return read_BTD + skip_D * x_BTD, h_BTSD[:, -1]
