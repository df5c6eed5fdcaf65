"""What followed when the same tokens came before: an n-gram cache as plain tensors.

Letters: B batch, N sites, R lengths of run.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64
"""Mixes a token into the hash of those before it: 2^64 over the golden ratio, as int64."""

NOTHING = -1


def longest_follower(tokens_BN: Tensor, n_runs: int) -> tuple[Tensor, Tensor]:
    """Return the token that followed the longest run that came before, and how long it was.

    For site ``t`` the runs are the last ``1, 2, 4 .. 2^(n_runs - 1)`` tokens. Of the longest one
    that also ends at an earlier place, the latest such place ``s < t`` decides; the answer is
    token ``s + 1``, which is known at ``t``. O(N log N).

    Runs are compared by a hash of 64 bits; two different runs of one row meet in it with a chance
    of about ``N^2 / 2^64``.

    Returns:
        (B, N) twice: the token, and ``r`` for a run of ``2^r`` tokens; both ``NOTHING`` where the
        last token is new.
    """
    n_sites = tokens_BN.shape[1]
    hash_RBN = run_hashes(tokens_BN, n_runs)
    order_RBN = hash_RBN.argsort(dim=2, stable=True)  # equal runs side by side, by place
    sorted_RBN = hash_RBN.gather(2, order_RBN)
    again_RBN = sorted_RBN[..., 1:] == sorted_RBN[..., :-1]
    before_RBN = order_RBN[..., :-1].masked_fill(~again_RBN, NOTHING)
    place_RBN = torch.full_like(order_RBN, NOTHING).scatter_(2, order_RBN[..., 1:], before_RBN)
    run_BN = (place_RBN != NOTHING).sum(0) - 1  # who knows a run knows all shorter ones
    place_BN = place_RBN.gather(0, run_BN.clamp(min=0)[None])[0]
    follower_BN = tokens_BN.gather(1, (place_BN + 1).clamp(max=n_sites - 1))
    return follower_BN.masked_fill(run_BN == NOTHING, NOTHING), run_BN


def run_hashes(tokens_BN: Tensor, n_runs: int) -> Tensor:
    """Return a hash of the last ``1, 2, 4 ..`` tokens of every site, (R, B, N).

    A run that reaches back before the start is like no other one.
    """
    n_sites = tokens_BN.shape[1]
    hashes = [_mixed((tokens_BN + 1) * MULTIPLIER)]
    for r in range(n_runs - 1):
        half_BN = hashes[-1]
        earlier_BN = pad(half_BN, (2**r, 0))[:, :n_sites]
        hashes.append(_mixed((earlier_BN * MULTIPLIER + half_BN) * MULTIPLIER))
    return torch.stack(hashes)


def _mixed(hash_BN: Tensor) -> Tensor:
    return hash_BN ^ (hash_BN >> 29)
