"""What learned length is trained on, and what is told about it.

Letters: B batch, N sites, K bins.
"""

from torch import Tensor
from torch.nn.functional import gumbel_softmax, pad

from bkray.config import ModelConfig
from bkray.nn.lm import Lengths, Prediction
from bkray.ops.length import loss_table, repeated_loss_table

TEMPERATURE = 0.25
"""Weight of the entropy of ``q``, as a share of a row's range of costs. The best ``q`` is then at
most ``e^4`` times as sure of the cheapest bin as of the dearest one. Without it a bin that is bad
while the layers know nothing yet is given up for good (docs/log.md)."""

LEAST_RANGE = 0.05
"""Nats per token: rows with less at stake count for less."""


def length_losses(
    prediction: Prediction, loss_BN: Tensor, targets_BN: Tensor, knobs: ModelConfig
) -> dict[str, Tensor]:
    """Return ``total``, which is trained on, and the mean length that the predictor expects.

    With ``C_k = L(k) / N + length_penalty * n_k / max_seq_len`` the total is a mean over rows of
    ``E_q[C]``, which teaches the answers behind a cut, and ``E_q[C] / range - TEMPERATURE *
    entropy(q)``, which teaches the predictor. The ``range`` is the row's dearest bin less its
    cheapest: without it rows that a cut costs little would teach nothing beside those that it
    costs much. Rows count of which every site was computed: they alone know every bin's loss.
    ``q`` is the softmax over the bins, or a straight-through sample of it
    (``length_gradient=gumbel``). What lies inside a cut is no part of what is taught here.
    """
    lengths = prediction.lengths
    assert lengths is not None
    share_BK = bin_shares(lengths.logit_BK, knobs.length_gradient or "exact")
    costs_BK = costs(prediction, loss_BN, targets_BN, knobs.length_penalty or 0.0)
    answers_B = (share_BK.detach() * costs_BK).sum(1)
    is_whole_B = lengths.computed_B == lengths.bins_K[-1].clamp(max=targets_BN.shape[1])
    taught_B = (answers_B + predictor_loss(lengths.logit_BK, share_BK, costs_BK)) * is_whole_B
    # By the share expected, not by the count: parts of a batch must add up to the whole.
    return {
        "total": taught_B.mean() / (1 - (knobs.length_train_cut or 0.0)),
        "length/expected_length": (share_BK * lengths.bins_K).sum(1).mean(),
    }


def predictor_loss(logit_BK: Tensor, share_BK: Tensor, costs_BK: Tensor) -> Tensor:
    """Return what teaches the predictor, (B,): the expected cost above the least possible one as
    a share of the row's range (or of ``LEAST_RANGE``), less the entropy."""
    cheapest_B, dearest_B = costs_BK.detach().aminmax(dim=1)
    range_B = (dearest_B - cheapest_B).clamp(min=LEAST_RANGE)
    relative_BK = (costs_BK.detach() - cheapest_B[:, None]) / range_B[:, None]
    log_BK = logit_BK.log_softmax(1)
    entropy_B = -(log_BK.exp() * log_BK).sum(1)
    return (share_BK * relative_BK).sum(1) - TEMPERATURE * entropy_B


def costs(prediction: Prediction, loss_BN: Tensor, targets_BN: Tensor, penalty: float) -> Tensor:
    """Return ``L(k) / N + penalty * n_k / max_seq_len`` of every row and bin, (B, K)."""
    lengths = prediction.lengths
    assert lengths is not None
    table_BK = table(prediction, lengths, loss_BN.detach(), targets_BN) / targets_BN.shape[1]
    return table_BK + penalty * lengths.bins_K / lengths.bins_K[-1]


def table(prediction: Prediction, lengths: Lengths, loss_BN: Tensor, targets_BN: Tensor) -> Tensor:
    """Return the loss of every row cut at every bin, (B, K), from a pass that cut nothing."""
    if lengths.beyond is None:
        logits_BNV = prediction.logits_BNV.detach()
        return repeated_loss_table(loss_BN, logits_BNV, targets_BN, lengths.bins_K)
    n_always = targets_BN.shape[1] - lengths.beyond.guess_BNV.shape[1]
    beyond_BN = lengths.beyond.losses(targets_BN[:, n_always:]).to(loss_BN.dtype)
    return loss_table(loss_BN, pad(beyond_BN, (n_always, 0)), lengths.bins_K)


def bin_shares(logit_BK: Tensor, gradient: str) -> Tensor:
    """Return the weight of every bin in the expectation: softmax, or one bin drawn by it."""
    if gradient == "gumbel":
        return gumbel_softmax(logit_BK, hard=True)
    return logit_BK.softmax(-1)
