"""The loss of every length at which a row could be cut, from one causal pass.

Letters: B batch, N sites, V vocabulary, K lengths. Losses are nats; a table holds sums over sites.
"""

import torch
from torch import Tensor


def loss_table(inside_BN: Tensor, beyond_BN: Tensor, bins_K: Tensor) -> Tensor:
    """Return the loss of each row cut at each length, (B, K).

    ``L(k) = sum_{t < n_k} inside_t + sum_{t >= n_k} beyond_t``, for an answer behind the cut that
    does not depend on where it is. Lengths above N leave nothing behind.
    """
    none_B1 = inside_BN.new_zeros(len(inside_BN), 1)
    upto_BM = torch.cat([none_B1, inside_BN.cumsum(1)], dim=1)
    beyond_upto_BM = torch.cat([none_B1, beyond_BN.cumsum(1)], dim=1)
    n_K = bins_K.clamp(max=inside_BN.shape[1])
    return upto_BM[:, n_K] + (beyond_upto_BM[:, -1:] - beyond_upto_BM[:, n_K])


def repeated_loss_table(
    inside_BN: Tensor, logits_BNV: Tensor, targets_BN: Tensor, bins_K: Tensor
) -> Tensor:
    """Return the same for the last computed output, repeated behind the cut: O(K N)."""
    n_sites = inside_BN.shape[1]
    n_K = bins_K.clamp(max=n_sites)
    logp_BKV = logits_BNV[:, n_K - 1].log_softmax(-1)
    repeated_BKN = -logp_BKV.gather(2, targets_BN[:, None, :].expand(-1, len(n_K), -1))
    is_inside_KN = torch.arange(n_sites, device=n_K.device) < n_K[:, None]
    return torch.where(is_inside_KN, inside_BN[:, None, :], repeated_BKN).sum(2)
