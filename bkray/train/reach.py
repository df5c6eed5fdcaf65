"""How far back the mixers of a trained model look on given rows.

Letters: B rows, N sites, D width, H heads, Q queries.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.nn.attention import AttentionMixer
from bkray.nn.bk import BKMixer
from bkray.ops.reach import Reach, of_gates, of_shares

QUERIES = 64
"""Sites of the second half of a row whose attention is looked at, evenly spread."""


class MeanReach(NamedTuple):
    """Means over layers, heads, rows and the second half of their sites."""

    tokens: float
    entropy_nats: float


@torch.no_grad()
def mean_reach(model: nn.Module, tokens_BN: Tensor) -> MeanReach | None:
    """Return the reach of attention, or of the resolvent; ``None`` for other mixers.

    Of attention the weights are looked at, of a BK head ``|G_ts|``, by which its last site
    depends on the values of the others; what its values run through besides, a semiseparable
    branch, is left out. The model is in evaluation mode and mixes single sites.
    """
    told: list[Reach] = []
    handles = []
    for module in model.modules():
        if isinstance(module, AttentionMixer | BKMixer):
            handles.append(
                module.register_forward_pre_hook(
                    lambda mixer, args: told.append(_of(mixer, *args))
                )
            )
    try:
        model(tokens_BN)
    finally:
        for handle in handles:
            handle.remove()
    if not told:
        return None
    tokens, entropy = (
        torch.cat([part.double().flatten() for part in parts]).mean()
        for parts in zip(*told, strict=True)
    )
    return MeanReach(float(tokens), float(entropy))


def _of(mixer: nn.Module, hidden_BND: Tensor, position_BN: Tensor) -> Reach:
    n_sites = hidden_BND.shape[1]
    if isinstance(mixer, BKMixer):
        seen = of_gates(mixer.green(hidden_BND))
        return Reach(seen.tokens[:, n_sites // 2 :], seen.entropy_nats[:, n_sites // 2 :])
    assert isinstance(mixer, AttentionMixer)
    place_Q = torch.linspace(n_sites // 2, n_sites - 1, min(QUERIES, n_sites - n_sites // 2))
    place_Q = place_Q.round().long().to(hidden_BND.device)
    return of_shares(mixer.shares(hidden_BND, position_BN, place_Q), place_Q)
