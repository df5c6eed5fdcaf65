"""The causal resolvent of a tridiagonal Hamiltonian: reference, autograd and choice of form.

Shapes: B rows, N sites (tokens), K value channels, H heads (innermost, so that loops vectorise),
F = 2 (1 + K) feature planes in the order Re g, Im g, Re y_1..y_K, Im y_1..y_K.
"""

import importlib
import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bkray.errors import ConfigError
from bkray.ops.forms import form_for

FORMS = {
    "reference": None,  # plain autograd through the loop below
    "cpu": "bkray.ops.tridiagonal_cpu",
    "torch": "bkray.ops.tridiagonal_torch",
    "triton": "bkray.ops.tridiagonal_triton",
}
"""Module of each form; a fast one offers ``forward`` and ``backward``, imported at first use."""


def causal_resolvent(
    h_BNH: Tensor,
    x_BNKH: Tensor,
    energy_H: Tensor,
    eta_H: Tensor,
    state_BFH: Tensor | None = None,
    *,
    form: str = "auto",
) -> Tensor:
    """Return the left Green's function and the resolvent applied to values, site by site.

    ``g_t = 1 / (h_t - z - g_{t-1})`` and ``y_t = g_t (x_t - y_{t-1})`` with ``z = energy + i
    eta``: the last diagonal entry, and the last entry on the values, of ``(H_t - z)^-1`` for the
    chain of sites ``0..t`` with couplings 1. Site ``t`` depends on sites ``0..t`` alone. A NaN at
    a site is a NaN in all features of its head from that site on. The scan runs in float64 when an
    input is float64, else in float32, also under autocast. Differentiable once, in all five
    inputs.

    Args:
        h_BNH: (B, N, H), on-site energies.
        x_BNKH: (B, N, K, H), values; K may be 0.
        energy_H: (H,), real part of ``z``.
        eta_H: (H,), imaginary part of ``z``, above 0 (not checked: that would wait for a GPU).
        state_BFH: (B, F, H), the features of the site before, ``features[:, -1]`` of the chunk
            before; None at the start of a sequence.
        form: a key of ``FORMS``, or "auto": "cpu" for tensors there, "triton" on CUDA where it is
            installed, "torch" elsewhere. "triton" reads ``h`` and ``x`` as they are, in bf16 too.

    Returns:
        (B, N, F, H). ``|g| <= 1 / eta``, ``Im g > 0``, ``|y_t| <= ||x_{0..t}||_2 / eta`` from an
        empty state.

    Raises:
        ConfigError: shapes do not fit, or the form is unknown.

    Source: forward sweep of the Thomas algorithm; gradients in docs/math.md.
    """
    _require_shapes(h_BNH, x_BNKH, energy_H, eta_H, state_BFH)
    inputs = [h_BNH, x_BNKH, energy_H, eta_H]
    if state_BFH is None:
        state_BFH = h_BNH.new_zeros(h_BNH.shape[0], 2 * (1 + x_BNKH.shape[2]), h_BNH.shape[2])
    else:
        inputs.append(state_BFH)
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in inputs) else torch.float32
    if form == "auto":
        form = form_for(h_BNH.device)
    if form not in FORMS:
        raise ConfigError(f"form must be auto or one of {', '.join(FORMS)}, got {form!r}")
    raised = [t.to(dtype) for t in (h_BNH, x_BNKH, energy_H, eta_H, state_BFH)]
    if form == "triton":
        raised[:2] = h_BNH, x_BNKH
    if form == "reference":
        return _reference(*raised)
    return cast(Tensor, _Resolvent.apply(FORMS[form], *raised))  # type: ignore[no-untyped-call]


def two_sided_resolvent(
    h_BNH: Tensor, x_BNKH: Tensor, energy_H: Tensor, eta_H: Tensor, *, form: str = "auto"
) -> Tensor:
    """Return the diagonal of ``(H - z)^-1`` of the whole chain, and the resolvent on values.

    A scan from each end, ``g, y`` up to the site before and ``g', y'`` from the site after on,
    meet at every site: ``G_tt = 1 / (h_t - z - g_{t-1} - g'_{t+1})`` and ``u_t = [(H - z)^-1 x]_t
    = G_tt (x_t - y_{t-1} - y'_{t+1})``. Not causal: every site sees all. For encoders only; in a
    language model it leaks the next token.

    Args:
        h_BNH: (B, N, H), on-site energies.
        x_BNKH: (B, N, K, H), values; K may be 0.
        energy_H: (H,), real part of ``z``.
        eta_H: (H,), imaginary part of ``z``, above 0.
        form: as in ``causal_resolvent``; "reference" substitutes back from the last site.

    Returns:
        (B, N, F, H), in the order Re G, Im G, Re u_1..u_K, Im u_1..u_K. ``|G| <= 1 / eta``,
        ``Im G > 0``, ``||u||_2 <= ||x||_2 / eta``.

    Source: Meurant 1992, SIAM J. Matrix Anal. Appl. 13(3), 707-728; values in docs/math.md.
    """
    left_BNFH = causal_resolvent(h_BNH, x_BNKH, energy_H, eta_H, form=form)
    if form == "reference":
        return _substituted_back(left_BNFH)
    right_BNFH = causal_resolvent(h_BNH.flip(1), x_BNKH.flip(1), energy_H, eta_H, form=form)
    before = torch.nn.functional.pad(left_BNFH[:, :-1], (0, 0, 0, 0, 1, 0))
    after = torch.nn.functional.pad(right_BNFH.flip(1)[:, 1:], (0, 0, 0, 0, 0, 1))
    g_real, g_imag, y_real, y_imag = _planes(before + after)
    # 1 / (a + ib) = (a - ib) / (a^2 + b^2), where b < 0: no cancellation, no small divisor
    real = (h_BNH - energy_H).unsqueeze(2) - g_real
    imag = -eta_H - g_imag
    size = real * real + imag * imag
    real, imag = real / size, -imag / size
    x_real, x_imag = x_BNKH - y_real, -y_imag
    u_real, u_imag = real * x_real - imag * x_imag, real * x_imag + imag * x_real
    return torch.cat((real, imag, u_real, u_imag), 2)


def _substituted_back(features_BNFH: Tensor) -> Tensor:
    """The backward sweep of the Thomas algorithm: ``u_t = y_t - g_t u_{t+1}``, and the same for
    the diagonal, ``G_tt = g_t + g_t^2 G_{t+1,t+1}``."""
    g_real, g_imag, y_real, y_imag = _planes(features_BNFH)
    g_BNH = torch.complex(g_real, g_imag)
    y_BNKH = torch.complex(y_real, y_imag)
    G_BH, u_BKH = torch.zeros_like(g_BNH[:, 0]), torch.zeros_like(y_BNKH[:, 0])
    sites = []
    for g_BH, y_BKH in zip(g_BNH.flip(1).unbind(1), y_BNKH.flip(1).unbind(1), strict=True):
        G_BH = g_BH + g_BH * g_BH * G_BH
        u_BKH = y_BKH - g_BH * u_BKH
        sites.append(torch.cat((G_BH.real, G_BH.imag, u_BKH.real, u_BKH.imag), 1))
    return torch.stack(sites[::-1], 1)


def _planes(features_BNFH: Tensor) -> tuple[Tensor, ...]:
    """Return Re g, Im g (B, N, 1, H) and Re y, Im y (B, N, K, H)."""
    K = features_BNFH.shape[2] // 2 - 1
    planes: tuple[Tensor, ...] = torch.split(features_BNFH, [1, 1, K, K], dim=2)
    return planes


def halo_sites(eta_min: float, dtype: torch.dtype) -> int:
    """Return how many sites make the past as small as the rounding of ``dtype``.

    What lies W sites back moves ``y`` by at most a share ``(1 + 1/eta) exp(-W asinh(eta/2))``, the
    product of the gates in the middle of the band, and ``g`` by the square of that product.

    Args:
        eta_min: the smallest ``eta`` of any head, above 0.
        dtype: of the scan.
    """
    decay = math.asinh(eta_min / 2)
    return math.ceil(math.log((1 + 1 / eta_min) / torch.finfo(dtype).eps) / decay)


def _require_shapes(
    h_BNH: Tensor, x_BNKH: Tensor, energy_H: Tensor, eta_H: Tensor, state_BFH: Tensor | None
) -> None:
    if h_BNH.dim() != 3 or h_BNH.shape[1] == 0:
        raise ConfigError(f"h must be (B, N, H) with N at least 1, got {tuple(h_BNH.shape)}")
    B, N, H = h_BNH.shape
    if x_BNKH.dim() != 4 or (*x_BNKH.shape[:2], x_BNKH.shape[3]) != (B, N, H):
        raise ConfigError(f"x must be (B={B}, N={N}, K, H={H}), got {tuple(x_BNKH.shape)}")
    for name, value in (("energy", energy_H), ("eta", eta_H)):
        if value.shape != (H,):
            raise ConfigError(f"{name} must be (H={H},), got {tuple(value.shape)}")
    F = 2 * (1 + x_BNKH.shape[2])
    if state_BFH is not None and state_BFH.shape != (B, F, H):
        raise ConfigError(
            f"state must be (B={B}, 2(1+K)={F}, H={H}), got {tuple(state_BFH.shape)}"
        )


def _reference(
    h_BNH: Tensor, x_BNKH: Tensor, energy_H: Tensor, eta_H: Tensor, state_BFH: Tensor
) -> Tensor:
    """The recurrence as written, one site after the other, in complex numbers."""
    K = x_BNKH.shape[2]
    z_H = torch.complex(energy_H, eta_H)
    g_BH = torch.complex(state_BFH[:, 0], state_BFH[:, 1])
    y_BKH = torch.complex(state_BFH[:, 2 : 2 + K], state_BFH[:, 2 + K :])
    sites = []
    for h_BH, x_BKH in zip(h_BNH.unbind(1), x_BNKH.unbind(1), strict=True):
        g_BH = 1 / (h_BH - z_H - g_BH)
        y_BKH = g_BH.unsqueeze(1) * (x_BKH - y_BKH)
        g_B1H = g_BH.unsqueeze(1)
        sites.append(torch.cat((g_B1H.real, g_B1H.imag, y_BKH.real, y_BKH.imag), 1))
    return torch.stack(sites, 1)


class _Resolvent(torch.autograd.Function):
    """A fast form and its reverse recurrence. Keeps the features: the inputs are not needed."""

    @staticmethod
    def forward(ctx: Any, module: str, *inputs: Tensor) -> Tensor:
        ctx.sweeps = importlib.import_module(module)
        features_BNFH = cast(Tensor, ctx.sweeps.forward(*inputs))
        ctx.save_for_backward(features_BNFH, inputs[3])
        return features_BNFH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNFH: Tensor) -> tuple[Tensor | None, ...]:
        features_BNFH, eta_H = ctx.saved_tensors
        return None, *ctx.sweeps.backward(features_BNFH, grad_BNFH, eta_H)
