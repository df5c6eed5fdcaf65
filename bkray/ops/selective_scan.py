"""The selective scan of a diagonal state-space model: reference, autograd and choice of form.

Shapes: B rows, N sites (tokens), D channels (innermost, so that loops vectorise), S states per
channel, M blocks of sites.
"""

import importlib
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bkray.errors import ConfigError
from bkray.ops.forms import form_for

FORMS = {
    "reference": None,  # plain autograd through the loop below
    "cpu": "bkray.ops.selective_scan_cpu",
    "torch": "bkray.ops.selective_scan_torch",
    "triton": "bkray.ops.selective_scan_triton",
}
"""Module of each form; a fast one offers ``forward`` and ``backward``, imported at first use."""


def selective_scan(
    x_BND: Tensor,
    dt_BND: Tensor,
    rate_SD: Tensor,
    into_BNS: Tensor,
    out_BNS: Tensor,
    skip_D: Tensor,
    state_BSD: Tensor | None = None,
    *,
    form: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return what every site reads of the states, and the states behind the last one.

    ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t`` and ``y_t = C_t . h_t + skip x_t``, with ``A`` the
    ``rate``, ``B`` ``into`` and ``C`` ``out``. Site ``t`` depends on sites ``0..t`` alone. A NaN
    of a channel at a site is a NaN in ``y`` of that channel from that site on. The scan runs in
    float64 when an input is float64, else in float32, also under autocast. Differentiable once, in
    all seven inputs; a fast form keeps the inputs and one state per block of sites.

    Args:
        x_BND: (B, N, D), what is put into the states.
        dt_BND: (B, N, D), step sizes, at least 0; a site with step 0 leaves the states alone.
        rate_SD: (S, D), below 0 (neither is checked: that would wait for a GPU).
        into_BNS: (B, N, S), how much of ``x`` each state takes.
        out_BNS: (B, N, S), how much of each state is read.
        skip_D: (D,), how much of ``x`` is read past the states.
        state_BSD: (B, S, D), the states behind the chunk before; None at the start of a sequence.
        form: a key of ``FORMS``, or "auto": "cpu" for tensors there, "triton" on CUDA where it is
            installed, "torch" elsewhere.

    Returns:
        ``y``, (B, N, D), and the last states, (B, S, D).

    Raises:
        ConfigError: shapes do not fit, or the form is unknown.

    Source: Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces.
    """
    _require_shapes(x_BND, dt_BND, rate_SD, into_BNS, out_BNS, skip_D, state_BSD)
    if state_BSD is None:
        state_BSD = x_BND.new_zeros(len(x_BND), *rate_SD.shape)
    inputs = (x_BND, dt_BND, rate_SD, into_BNS, out_BNS, skip_D, state_BSD)
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in inputs) else torch.float32
    raised = [t.to(dtype) for t in inputs]
    if form == "auto":
        form = form_for(x_BND.device)
    if form not in FORMS:
        raise ConfigError(f"form must be auto or one of {', '.join(FORMS)}, got {form!r}")
    if form == "reference":
        return _reference(*raised)
    applied = _SelectiveScan.apply(FORMS[form], *raised)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], applied)


def _require_shapes(
    x_BND: Tensor,
    dt_BND: Tensor,
    rate_SD: Tensor,
    into_BNS: Tensor,
    out_BNS: Tensor,
    skip_D: Tensor,
    state_BSD: Tensor | None,
) -> None:
    if x_BND.dim() != 3 or x_BND.shape[1] == 0:
        raise ConfigError(f"x must be (B, N, D) with N at least 1, got {tuple(x_BND.shape)}")
    B, N, D = x_BND.shape
    if rate_SD.dim() != 2 or rate_SD.shape[1] != D:
        raise ConfigError(f"rate must be (S, D={D}), got {tuple(rate_SD.shape)}")
    S = len(rate_SD)
    for name, value, shape in (
        ("dt", dt_BND, (B, N, D)),
        ("into", into_BNS, (B, N, S)),
        ("out", out_BNS, (B, N, S)),
        ("skip", skip_D, (D,)),
        ("state", state_BSD, (B, S, D)),
    ):
        if value is not None and value.shape != shape:
            raise ConfigError(f"{name} must be {shape}, got {tuple(value.shape)}")


def _reference(
    x_BND: Tensor,
    dt_BND: Tensor,
    rate_SD: Tensor,
    into_BNS: Tensor,
    out_BNS: Tensor,
    skip_D: Tensor,
    state_BSD: Tensor,
) -> tuple[Tensor, Tensor]:
    """The recurrence as written, one site after the other."""
    sites = []
    for x_BD, dt_BD, into_BS, out_BS in zip(
        *(t.unbind(1) for t in (x_BND, dt_BND, into_BNS, out_BNS)), strict=True
    ):
        decay_BSD = (dt_BD[:, None] * rate_SD).exp()
        state_BSD = decay_BSD * state_BSD + into_BS[..., None] * (dt_BD * x_BD)[:, None]
        sites.append((out_BS[..., None] * state_BSD).sum(1) + skip_D * x_BD)
    return torch.stack(sites, 1), state_BSD


class _SelectiveScan(torch.autograd.Function):
    """A fast form and its reverse, which computes the states of a block of sites once more."""

    @staticmethod
    def forward(ctx: Any, module: str, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.sweeps = importlib.import_module(module)
        y_BND, last_BSD, borders_BMSD = ctx.sweeps.forward(*inputs)
        *kept, _ = inputs
        ctx.save_for_backward(*kept, borders_BMSD)
        return y_BND, last_BSD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BND: Tensor, dlast_BSD: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.sweeps.backward(*ctx.saved_tensors, dy_BND, dlast_BSD)
