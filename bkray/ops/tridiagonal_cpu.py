"""The causal resolvent on the CPU: numba, SIMD lanes over heads, tasks over rows, heads and time.

Shapes: B rows, N sites, K value channels, H heads, F = 2 (1 + K) feature planes, C time chunks,
W lanes (neighbouring heads).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from numba import types
from torch import Tensor

from bkray.ops.lanes import CACHE_LINE
from bkray.ops.tasks import numbers, run_tasks, width_of
from bkray.ops.tridiagonal import halo_sites
from bkray.ops.tridiagonal_kernels import BLOCK_SITES, backward_tasks, forward_tasks

WIDE_BYTES, NARROW_BYTES = 256, 128
"""Lanes of a task: enough chains to hide the latency of a division; narrow to feed all threads."""
HALO_SHARE = 8
"""A time chunk is at least so many halos long, so at most 1/8 of the work is done twice."""
SERIAL_SITE_CHANNELS = 1 << 15
"""Below this a second thread costs more than it saves (waking it takes tens of microseconds)."""
PAST_CACHE_BYTES = 8 << 20
"""Results larger than this leave the cache before anyone reads them: written past it."""


def forward(
    h_BNH: Tensor, x_BNKH: Tensor, energy_H: Tensor, eta_H: Tensor, state_BFH: Tensor
) -> Tensor:
    """Return the features, as ``tridiagonal.causal_resolvent`` documents them."""
    B, N, K, H = x_BNKH.shape
    features_BNFH = h_BNH.new_empty(B, N, 2 * (1 + K), H)
    plan = _plan(B, N, H, eta_H)
    plan.run(forward_tasks, (h_BNH, x_BNKH, energy_H, eta_H, state_BFH), (features_BNFH,))
    lost_BFH = torch.zeros(B, 2 * (1 + K), H, dtype=torch.bool)
    for first, stop in plan.chunks[1:]:  # a chunk that starts from its halo sees no older NaN
        lost_BFH |= ~features_BNFH[:, first - 1].isfinite()
        _lose(features_BNFH[:, first:stop], lost_BFH)
    return features_BNFH


def backward(features_BNFH: Tensor, grad_BNFH: Tensor, eta_H: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of h, x, energy, eta and state by the reverse recurrences."""
    B, N, F, H = features_BNFH.shape
    K = F // 2 - 1
    plan = _plan(B, N, H, eta_H)
    C = len(plan.chunks)
    h_BNH, x_BNKH = features_BNFH.new_empty(B, N, H), features_BNFH.new_empty(B, N, K, H)
    left_CBFH = features_BNFH.new_empty(C, B, F, H)
    sums_CB2H = torch.empty(C, B, 2, H, dtype=torch.float64)
    tensors = (features_BNFH, grad_BNFH, left_CBFH, sums_CB2H)
    plan.run(backward_tasks, tensors, (h_BNH, x_BNKH))
    lost_BFH = torch.zeros(B, F, H, dtype=torch.bool)
    for chunk in reversed(range(C - 1)):
        lost_BFH |= ~left_CBFH[chunk + 1].isfinite()
        lost_BFH[:, :2] |= lost_BFH.any(1, keepdim=True)  # the values pull on g
        sites = slice(*plan.chunks[chunk])
        _lose(h_BNH[:, sites], lost_BFH[:, 0])
        _lose(x_BNKH[:, sites], lost_BFH[:, 2 : 2 + K])
        _lose(left_CBFH[chunk].unsqueeze(1), lost_BFH)
    energy_H, eta_grad_H = sums_CB2H.sum((0, 1)).to(features_BNFH.dtype)
    return h_BNH, x_BNKH, energy_H, eta_grad_H, left_CBFH[0]


def _lose(sites: Tensor, lost: Tensor) -> None:
    """Make NaN of what depends on a site that was not finite, all along axis 1."""
    if lost.any():
        sites.masked_fill_(lost.unsqueeze(1), torch.nan)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a sweep is cut: W lanes, [first, stop) of the time chunks, halo sites, threads."""

    width: int
    chunks: list[tuple[int, int]]
    halo: int
    n_threads: int

    def run(
        self, tasks: Callable[..., None], tensors: Sequence[Tensor], results: Sequence[Tensor]
    ) -> None:
        """Work through the tasks, on this thread and as many others as there are to be.

        ``results`` are the large tensors that a task writes; small ones may be among ``tensors``.
        """
        past_cache = sum(t.nbytes for t in results) > PAST_CACHE_BYTES and self._in_lines(results)
        plan = (
            (types.int64[:, ::1], numbers(self.chunks)),
            (types.int64, self.halo),
            width_of(self.width),
            (types.boolean, True) if past_cache else (types.none, None),
        )
        run_tasks(tasks, plan, (*tensors, *results), self.n_threads)

    def _in_lines(self, results: Sequence[Tensor]) -> bool:
        """Whether lanes cover whole cache lines wherever a task writes them."""
        steps = [n for t in results for n in (t.data_ptr(), t.shape[-1] * t.element_size())]
        steps.append(self.width * results[0].element_size())
        return all(n % CACHE_LINE == 0 for n in steps)


def _plan(B: int, N: int, H: int, eta_H: Tensor) -> _Plan:
    """Rows first, then chunks of time, which keep whole lines of memory together, then heads."""
    n_threads = torch.get_num_threads() if B * N * H > SERIAL_SITE_CHANNELS else 1
    width = _width(H, WIDE_BYTES // eta_H.element_size())
    n_rows = B * -(-H // width)
    even = n_threads // math.gcd(n_rows, n_threads)  # chunks that give each thread as many tasks
    missing = min(even, -(-4 * n_threads // n_rows))
    n_chunks, halo = 1, 0
    if missing > 1 and bool((eta_H > 0).all()):
        halo = halo_sites(float(eta_H.min()), eta_H.dtype)
        n_chunks = max(1, min(missing, N // (HALO_SHARE * halo + BLOCK_SITES)))
    if n_rows * n_chunks < n_threads:
        width = _width(H, NARROW_BYTES // eta_H.element_size())
    firsts = [N * c // n_chunks for c in range(n_chunks + 1)]
    return _Plan(width, list(itertools.pairwise(firsts)), halo, n_threads)


def _width(H: int, lanes: int) -> int:
    """The largest power of two that neither ``H`` nor ``lanes``, a power of two, is below."""
    return int(min(lanes, 1 << (H.bit_length() - 1)))
