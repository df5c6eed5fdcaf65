"""The gated linear recurrence ``y_t = a_t y_{t-1} + b_t``. B batch, N sites, D channels."""

import torch
from torch import Tensor


def reference(gate_BND: Tensor, input_BND: Tensor) -> Tensor:
    """Return ``y``, site by site, from ``y_{-1} = 0``; any dtype, (B, N, D)."""
    y_BD = torch.zeros_like(input_BND[:, 0])
    ys = []
    for gate_BD, input_BD in zip(gate_BND.unbind(1), input_BND.unbind(1), strict=True):
        y_BD = gate_BD * y_BD + input_BD
        ys.append(y_BD)
    return torch.stack(ys, dim=1)


def doubling(gate_BND: Tensor, input_BND: Tensor, before_BD: Tensor | None = None) -> Tensor:
    """Return the same ``y`` in ``ceil(log2 N)`` rounds, from ``y_{-1} = before``, or 0.

    Round r joins each site with the one ``2^r`` before it: two steps ``(a, b)`` after ``(a', b')``
    are the one step ``(a a', a b' + b)``. No division, so gates may be 0.
    """
    n = input_BND.shape[1]
    if before_BD is not None:
        first_B1D = input_BND[:, :1] + gate_BND[:, :1] * before_BD[:, None]
        input_BND = torch.cat([first_B1D, input_BND[:, 1:]], dim=1)
    y_BND, product_BND = input_BND, gate_BND
    reach = 1
    while reach < n:
        joined = product_BND[:, reach:] * y_BND[:, :-reach] + y_BND[:, reach:]
        y_BND = torch.cat([y_BND[:, :reach], joined], dim=1)
        if 2 * reach < n:
            further = product_BND[:, reach:] * product_BND[:, :-reach]
            product_BND = torch.cat([product_BND[:, :reach], further], dim=1)
        reach *= 2
    return y_BND
