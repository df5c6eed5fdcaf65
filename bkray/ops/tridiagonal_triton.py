"""The causal resolvent on a GPU: Triton kernels, parallel over rows, heads, values and time.

Shapes: B rows, N sites, K value channels, H heads, F = 2 (1 + K) feature planes, C time chunks,
L = B max(1, K) H lanes. Where lanes alone do not fill the device, time is cut into chunks: a first
pass says what each chunk makes of any state before it, a short one goes from chunk to chunk, and
the last computes the sites. That needs no halo, so no ``eta`` has to be read on the host.

Bytes per site-channel at K = 1, float32: forward 24 (h, x; four features) and 8 more with chunks;
backward 40 (features, their gradient; dh, dx) and 32 more with chunks. Nothing could move fewer
than 56 in both: 24, and 32 if features were computed again. Lanes of a head share its ``g`` only
in the cache, and for K > 1 each writes a part of ``dh`` that is summed behind.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from bkray.errors import ConfigError
from bkray.ops import tridiagonal_triton_back_kernels as back_kernels
from bkray.ops import tridiagonal_triton_kernels as kernels

WARP, BLOCK_LANES = 32, 64
"""Of a program: two warps, so that few lanes are idle where there are few heads."""
AHEAD_SITES, BACK_AHEAD_SITES, AHEAD_CHUNKS = 16, 4, 4
"""Loaded at once: bytes in flight hide the memory's latency; more would not fit the registers."""
LANES_PER_PROCESSOR = 256
"""Lanes times chunks that one processor holds: of its 65,536 registers 4 programs of 64 threads
with 254 each, as forward has them, leave no room for a fifth. Arithmetic, measured on no GPU."""
SHORTEST_CHUNK = 64
"""Sites of 24 bytes; what a chunk hands on is 120 bytes per lane, written and read."""


class _Plan(NamedTuple):
    """How a sweep is cut: lanes, sites of a chunk, chunks."""

    n_lanes: int
    n_sites: int
    n_chunks: int

    def programs(self, n_chunks: int) -> tuple[int, int]:
        return triton.cdiv(self.n_lanes, BLOCK_LANES), n_chunks


def forward(
    h_BNH: Tensor, x_BNKH: Tensor, energy_H: Tensor, eta_H: Tensor, state_BFH: Tensor
) -> Tensor:
    """Return the features, in the dtype of the state; ``h`` and ``x`` may be lower ones."""
    B, N, K, H = x_BNKH.shape
    plan = _plan(h_BNH, B * max(1, K) * H)
    h, x, energy, eta, state = (
        t.contiguous() for t in (h_BNH, x_BNKH, energy_H, eta_H, state_BFH)
    )
    features_BNFH = state.new_empty(B, N, 2 * (1 + K), H)
    starts = state.new_empty(plan.n_chunks - 1, 4, plan.n_lanes)
    sizes = (K, H, plan.n_lanes)
    # Triton launches on the current device.
    with torch.cuda.device_of(features_BNFH):  # type: ignore[no-untyped-call]
        if plan.n_chunks > 1:
            maps = state.new_empty(plan.n_chunks - 1, 13, plan.n_lanes, dtype=torch.float64)
            kernels.maps_kernel[plan.programs(plan.n_chunks - 1)](
                h, x, energy, eta, maps, N, *sizes, plan.n_sites, **_launch(AHEAD_SITES)
            )
            kernels.starts_kernel[plan.programs(1)](
                maps, state, starts, *sizes, plan.n_chunks - 1, **_launch(AHEAD_CHUNKS)
            )
        kernels.forward_kernel[plan.programs(plan.n_chunks)](
            h, x, energy, eta, state, starts, features_BNFH, N, *sizes, plan.n_sites,
            **_launch(AHEAD_SITES),
        )  # fmt: skip
    return features_BNFH


def backward(features_BNFH: Tensor, grad_BNFH: Tensor, eta_H: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of h, x, energy, eta and state by the reverse recurrences."""
    B, N, F, H = features_BNFH.shape
    K, width = F // 2 - 1, max(1, F // 2 - 1)
    plan = _plan(features_BNFH, B * width * H)
    features, grad = features_BNFH.contiguous(), grad_BNFH.contiguous()
    new = features.new_empty
    dx_BNKH, parts_BNKH = new(B, N, K, H), new(B, N, width, H)
    ends, sums = new(plan.n_chunks - 1, 4, plan.n_lanes), new(plan.n_chunks, 2, B, width, H)
    dstate = new(4, B, width, H)
    sizes = (N, K, H, plan.n_lanes)
    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        if plan.n_chunks > 1:
            maps = new(plan.n_chunks - 1, 8, plan.n_lanes)
            back_kernels.back_maps_kernel[plan.programs(plan.n_chunks - 1)](
                features, grad, maps, *sizes, plan.n_sites, **_launch(BACK_AHEAD_SITES)
            )
            back_kernels.ends_kernel[plan.programs(1)](
                maps, ends, plan.n_lanes, plan.n_chunks - 1, **_launch(AHEAD_CHUNKS)
            )
        back_kernels.backward_kernel[plan.programs(plan.n_chunks)](
            features, grad, ends, parts_BNKH, dx_BNKH, sums, dstate, *sizes, plan.n_sites,
            plan.n_chunks, **_launch(BACK_AHEAD_SITES),
        )  # fmt: skip
    dh_BNH = parts_BNKH.sum(2) if K > 1 else parts_BNKH[:, :, 0]
    denergy_H, deta_H = sums.sum((0, 2, 3), dtype=torch.float64).to(features.dtype)
    dy_2BKH, dg_2BH = -dstate[:2, :, :K], dstate[2:].sum(2)
    dstate_BFH = torch.cat((*dg_2BH.unsqueeze(2), *dy_2BKH), 1)
    return dh_BNH, dx_BNKH, denergy_H, deta_H, dstate_BFH


def _plan(h_BNH: Tensor, n_lanes: int) -> _Plan:
    """As many chunks as the device holds programs of at once, but no more than the sites of one,
    for they go in a row. One chunk more would have most of the device wait for a second wave."""
    N, device = h_BNH.shape[1], h_BNH.device
    n_processors = 1
    if device.type == "cuda":
        n_processors = torch.cuda.get_device_properties(device).multi_processor_count
    elif not triton.knobs.runtime.interpret:
        raise ConfigError(
            f"form=triton needs a GPU, or TRITON_INTERPRET=1 in the environment, got {device}"
        )
    n_held = n_processors * LANES_PER_PROCESSOR // BLOCK_LANES
    wanted = min(n_held // triton.cdiv(n_lanes, BLOCK_LANES), math.isqrt(N))
    n_sites = max(SHORTEST_CHUNK, -(-N // max(1, wanted)))
    n_sites = -(-n_sites // AHEAD_SITES) * AHEAD_SITES
    return _Plan(n_lanes, n_sites, -(-N // n_sites))


def _launch(ahead: int) -> dict[str, int]:
    return {"BLOCK": BLOCK_LANES, "AHEAD": ahead, "num_warps": BLOCK_LANES // WARP}
