"""What followed when the same tokens came before: an n-gram cache as plain tensors.

Letters: B batch, N sites.
"""

import torch
from torch import Tensor

MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64
"""Mixes a token into the hash of those before it: 2^64 over the golden ratio, as int64."""

NOTHING = -1


def latest_follower(tokens_BN: Tensor, order: int) -> Tensor:
    """Return the token that followed the latest earlier place with the same last tokens, (B, N).

    For site ``t`` the last ``order`` tokens are ``t - order + 1 .. t``; the place ``s < t`` is the
    latest one with an equal run behind it, and the answer is token ``s + 1``, which is known at
    ``t``. ``NOTHING`` where the run is new or reaches back before the start. O(N log N).

    Runs are compared by a hash of 64 bits; two different runs of one row meet in it with a chance
    of about ``N^2 / 2^64``.
    """
    n_sites = tokens_BN.shape[1]
    answer_BN = torch.full_like(tokens_BN, NOTHING)
    if n_sites <= order:
        return answer_BN
    run_BN = run_hash(tokens_BN, order)
    order_BN = run_BN.argsort(dim=1, stable=True)  # equal runs side by side, by place
    sorted_BN = run_BN.gather(1, order_BN)
    again_BN = sorted_BN[:, 1:] == sorted_BN[:, :-1]
    place_BN, before_BN = order_BN[:, 1:], order_BN[:, :-1]
    after_BN = (before_BN + 1).clamp(max=n_sites - 1)  # only runs that come again are followed
    follower_BN = tokens_BN.gather(1, after_BN).masked_fill(~again_BN, NOTHING)
    return answer_BN.scatter(1, place_BN, follower_BN)


def run_hash(tokens_BN: Tensor, order: int) -> Tensor:
    """Return a hash of the last ``order`` tokens of every site; before the start lies no token."""
    hash_BN = torch.zeros_like(tokens_BN)
    for back in reversed(range(order)):
        shifted_BN = torch.zeros_like(tokens_BN)
        shifted_BN[:, back:] = tokens_BN[:, : tokens_BN.shape[1] - back] + 1
        hash_BN = (hash_BN + shifted_BN) * MULTIPLIER
        hash_BN = hash_BN ^ (hash_BN >> 29)
    return hash_BN
