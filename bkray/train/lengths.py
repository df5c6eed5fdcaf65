"""What learned length is trained on, and what is told about it.

Letters: B batch, N sites, K bins.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy, gumbel_softmax

from bkray.config import ModelConfig
from bkray.nn.lm import Lengths, Prediction
from bkray.ops.length import loss_table, repeated_loss_table

TEMPERATURE = 0.25
"""Weight of the entropy of ``q``, as a share of the row's own range of costs. The best ``q`` is
then at most ``e^4`` times as sure of the cheapest bin as of the dearest one. Without it a bin that
is bad while the layers know nothing yet is given up for good (docs/log.md)."""


def length_losses(
    prediction: Prediction, loss_BN: Tensor, targets_BN: Tensor, knobs: ModelConfig
) -> dict[str, Tensor]:
    """Return ``total``, which is trained on, and what it is made of.

    ``E_q[L(k)] / N + length_penalty * E_q[n_k] / max_seq_len - temperature * entropy(q)``, a mean
    over the rows of which every site was computed: they alone know the loss of every bin. ``q`` is
    the softmax over the bins, or a straight-through sample of it (``length_gradient=gumbel``). The
    loss inside a cut teaches the predictor alone, what lies behind it also the answer given there.
    """
    lengths = prediction.lengths
    assert lengths is not None
    n_sites = targets_BN.shape[1]
    share_BK = bin_shares(lengths.logit_BK, knobs.length_gradient or "exact")
    costs_BK = costs(prediction, loss_BN, targets_BN, knobs.length_penalty or 0.0)
    whole_B = (lengths.computed_B == lengths.bins_K[-1].clamp(max=n_sites)).to(costs_BK.dtype)
    log_share_BK = lengths.logit_BK.log_softmax(1)
    entropy_B = -(log_share_BK.exp() * log_share_BK).sum(1)
    cheapest_B, dearest_B = costs_BK.detach().aminmax(dim=1)
    warmth_B = TEMPERATURE * (dearest_B - cheapest_B)
    expected_B = (share_BK * costs_BK).sum(1) - warmth_B * entropy_B
    return {
        "total": (expected_B * whole_B).sum() / whole_B.sum().clamp(min=1),
        "length/expected_length": (share_BK * lengths.bins_K).sum(1).mean(),
    }


def costs(prediction: Prediction, loss_BN: Tensor, targets_BN: Tensor, penalty: float) -> Tensor:
    """Return ``L(k) / N + penalty * n_k / max_seq_len`` of every row and bin, (B, K)."""
    lengths = prediction.lengths
    assert lengths is not None
    table_BK = table(prediction, lengths, loss_BN.detach(), targets_BN) / targets_BN.shape[1]
    return table_BK + penalty * lengths.bins_K / lengths.bins_K[-1]


def table(prediction: Prediction, lengths: Lengths, loss_BN: Tensor, targets_BN: Tensor) -> Tensor:
    """Return the loss of every row cut at every bin, (B, K), from a pass that cut nothing."""
    if lengths.beyond_BNV is None:
        logits_BNV = prediction.logits_BNV.detach()
        return repeated_loss_table(loss_BN, logits_BNV, targets_BN, lengths.bins_K)
    beyond_BN = cross_entropy(
        lengths.beyond_BNV.flatten(0, 1).to(loss_BN.dtype), targets_BN.flatten(), reduction="none"
    )
    return loss_table(loss_BN, beyond_BN.view_as(loss_BN), lengths.bins_K)


def bin_shares(logit_BK: Tensor, gradient: str) -> Tensor:
    """Return the weight of every bin in the expectation: softmax, or one bin drawn by it."""
    if gradient == "gumbel":
        return gumbel_softmax(logit_BK, hard=True)
    return logit_BK.softmax(-1)
