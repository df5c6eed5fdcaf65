"""The causal convolution on the CPU in numba: SIMD lanes over channels, tasks over them and rows.

Shapes: B rows, N sites, K taps, M = N + K - 1, D channels, G groups of channels, W lanes.
"""

from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from bkray.ops.lanes import load, store, take_ticket, zero
from bkray.ops.tasks import (
    channels_of,
    lane_width,
    run_tasks,
    shares,
    whole_lanes,
    width_of,
)

BLOCK_SITES = 32
SERIAL_NUMBERS = 1 << 18
"""Below this a second thread costs more than it saves (waking it takes tens of microseconds)."""


def forward(x_BMD: Tensor, weight_KD: Tensor, bias_D: Tensor) -> Tensor:
    """Return ``y``, as ``causal_conv.causal_conv`` documents it."""
    B, M, D = x_BMD.shape
    x, weight, bias = whole_lanes(x_BMD, weight_KD, bias_D)
    y = x.new_empty(B, M - len(weight) + 1, x.shape[2])
    G, n_threads = shares(x, x.numel() > SERIAL_NUMBERS)
    plan = ((types.int64, G), width_of(lane_width(x)))
    run_tasks(_forward_tasks, plan, (x, weight, bias, y), n_threads)
    return y[..., :D]


def backward(x_BMD: Tensor, weight_KD: Tensor, dy_BND: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight and bias."""
    B, _, D = x_BMD.shape
    x, weight, dy = whole_lanes(x_BMD, weight_KD, dy_BND)
    dx = torch.zeros_like(x, memory_format=torch.contiguous_format)
    sums = torch.zeros(B, len(weight) + 1, x.shape[2], dtype=torch.float64)
    G, n_threads = shares(x, x.numel() > SERIAL_NUMBERS)
    plan = ((types.int64, G), width_of(lane_width(x)))
    run_tasks(_backward_tasks, plan, (x, weight, dy, dx, sums), n_threads)
    of_taps = sums.sum(0).to(x.dtype)[:, :D]
    return dx[..., :D], of_taps[:-1], of_taps[-1]


def _forward_tasks(
    ticket: Any, G: int, width: Any, x: Any, weight: Any, bias: Any, y: Any
) -> None:
    """Fill ``y`` (B, N, D)."""
    B, N, D = y.shape
    K, W = len(weight), len(width)
    number = take_ticket(ticket)
    while number < B * G:
        row, _, head, tail = channels_of(number, G, D, W)
        for t in range(N):
            for channel in range(head, tail, W):
                y_W = load(bias, (channel,), width)
                for k in range(K):
                    x_W = load(x, (row, t + k, channel), width)
                    y_W = y_W + load(weight, (k, channel), width) * x_W
                store(y, (row, t, channel), y_W, None)
        number = take_ticket(ticket)


def _backward_tasks(
    ticket: Any, G: int, width: Any, x: Any, weight: Any, dy: Any, dx: Any, sums: Any
) -> None:
    """Add to ``dx`` (B, M, D), and to ``sums`` (B, K + 1, D), in float64: by rows, bias last."""
    B, N, D = dy.shape
    K, W = len(weight), len(width)
    part = np.empty((1, W), x.dtype)
    number = take_ticket(ticket)
    while number < B * G:
        row, _, head, tail = channels_of(number, G, D, W)
        for first in range(0, N, BLOCK_SITES):
            stop = min(first + BLOCK_SITES, N)
            for channel in range(head, tail, W):
                bias_W = zero(x, width)
                for k in range(K):
                    weight_W, sum_W = load(weight, (k, channel), width), zero(x, width)
                    for t in range(first, stop):
                        dy_W = load(dy, (row, t, channel), width)
                        sum_W = sum_W + dy_W * load(x, (row, t + k, channel), width)
                        dx_W = load(dx, (row, t + k, channel), width) + weight_W * dy_W
                        store(dx, (row, t + k, channel), dx_W, None)
                    store(part, (0, 0), sum_W, None)
                    for lane in range(W):
                        sums[row, k, channel + lane] += part[0, lane]
                for t in range(first, stop):
                    bias_W = bias_W + load(dy, (row, t, channel), width)
                store(part, (0, 0), bias_W, None)
                for lane in range(W):
                    sums[row, K, channel + lane] += part[0, lane]
        number = take_ticket(ticket)
