"""A short causal convolution per channel. Shapes: B rows, N sites, K taps, M = N + K - 1, D."""

import importlib
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_FORM = "bkray.ops.causal_conv_cpu"


def causal_conv(x_BMD: Tensor, weight_KD: Tensor, bias_D: Tensor) -> Tensor:
    """Return ``y_t = bias + sum_k weight_k x_{t+k}``, (B, N, D), of ``M = N + K - 1`` sites.

    The first ``K - 1`` sites of ``x`` are those before the first of ``y``, so the last tap is the
    one on a site itself. All in the dtype of ``x``, float32 or float64. Differentiable once on the
    CPU, where torch's own convolution per channel takes four times as long.
    """
    weight_KD, bias_D = weight_KD.to(x_BMD.dtype), bias_D.to(x_BMD.dtype)
    if x_BMD.device.type != "cpu":
        return reference(x_BMD, weight_KD, bias_D)
    applied = _CausalConv.apply(x_BMD, weight_KD, bias_D)  # type: ignore[no-untyped-call]
    return cast(Tensor, applied)


def reference(x_BMD: Tensor, weight_KD: Tensor, bias_D: Tensor) -> Tensor:
    """Return the same, tap by tap, in any dtype and on any device."""
    n_sites = x_BMD.shape[1] - len(weight_KD) + 1
    y_BND = bias_D + weight_KD[0] * x_BMD[:, :n_sites]
    for k in range(1, len(weight_KD)):
        y_BND = y_BND + weight_KD[k] * x_BMD[:, k : k + n_sites]
    return y_BND


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BMD: Tensor, weight_KD: Tensor, bias_D: Tensor) -> Tensor:
        ctx.sweeps = importlib.import_module(CPU_FORM)
        ctx.save_for_backward(x_BMD, weight_KD)
        return cast(Tensor, ctx.sweeps.forward(x_BMD, weight_KD, bias_D))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BND: Tensor) -> tuple[Tensor, ...]:
        return cast(tuple[Tensor, ...], ctx.sweeps.backward(*ctx.saved_tensors, dy_BND))
