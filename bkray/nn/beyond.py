"""What answers for the sites behind a cut, nearly for free.

Letters: B batch, N sites, D width, V vocabulary. Answers are logits, (B, N, V).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bkray.ops.copying import NOTHING, longest_follower

LAGS = 8
"""Distances at which sites are compared: a pattern repeats itself within them."""

Read = Callable[[Tensor], Tensor]
"""The model's norm and head: states (B, N, D) to logits (B, N, V)."""


def pooled(embedded_BND: Tensor) -> Tensor:
    """Return the mean direction of the sites and their mean cosines at each lag, (B, D + LAGS)."""
    unit_BND = normalize(embedded_BND, dim=-1)
    n_sites = unit_BND.shape[1]
    alike = [
        (unit_BND[:, lag:] * unit_BND[:, : n_sites - lag]).sum((1, 2)) / (n_sites - lag)
        for lag in range(1, min(LAGS, n_sites - 1) + 1)
    ]
    none_B = unit_BND.new_zeros(len(unit_BND))
    alike += [none_B] * (LAGS - len(alike))
    return torch.cat([unit_BND.mean(1), torch.stack(alike, 1)], dim=1)


class Repeat(nn.Module):
    """The last computed output, repeated: it depends on the cut, so the model gives it itself."""


class Shallow(nn.Module):
    """The embedding straight into the head: a guess from the last token and the kind of the row.

    The kind is told by a linear map of the row's ``pooled`` start, added to every embedding.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.kind = nn.Linear(d_model + LAGS, d_model)
        nn.init.zeros_(self.kind.weight)
        nn.init.zeros_(self.kind.bias)

    def forward(
        self, tokens_BN: Tensor, embedded_BND: Tensor, start_BF: Tensor, read: Read, first: int
    ) -> Tensor:
        """Return the answers of the sites from ``first`` on."""
        return read(embedded_BND[:, first:] + self.kind(start_BF)[:, None])


class Copy(nn.Module):
    """What followed the latest equal run of tokens, mixed with the shallow guess.

    Runs of 1, 2, 4 and 8 tokens are looked for; the longest one that came before in the row
    decides. It is trusted with probability ``sigmoid(trust)``, one learned number per length of
    run: a repeated pattern is found by all of them, a chance repeat by the short ones.
    """

    N_RUNS = 4

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.trust = nn.Parameter(torch.linspace(-2.0, 2.0, self.N_RUNS))
        self.shallow = Shallow(d_model)

    def forward(
        self, tokens_BN: Tensor, embedded_BND: Tensor, start_BF: Tensor, read: Read, first: int
    ) -> Tensor:
        """Return the answers of the sites from ``first`` on."""
        shallow_BNV: Tensor = self.shallow(tokens_BN, embedded_BND, start_BF, read, first)
        guess_BNV = shallow_BNV.log_softmax(-1)
        copied_BN, run_BN = longest_follower(tokens_BN, self.N_RUNS)
        token_BN1 = copied_BN[:, first:, None].clamp(min=0)
        trust_BN1 = self.trust.to(guess_BNV.dtype)[run_BN[:, first:, None].clamp(min=0)]
        guess_BN1 = guess_BNV.gather(-1, token_BN1)
        # p (1 - w) everywhere, w more at the copied token: over 1 - w, and only that one moves.
        mixed_BN1 = torch.where(
            run_BN[:, first:, None] == NOTHING, guess_BN1, torch.logaddexp(guess_BN1, trust_BN1)
        )
        if torch.is_grad_enabled():
            return guess_BNV.scatter(-1, token_BN1, mixed_BN1)
        return guess_BNV.scatter_(-1, token_BN1, mixed_BN1)  # no copy of a large tensor


def beyond(policy: str, d_model: int) -> Repeat | Shallow | Copy:
    """Return the policy of that name."""
    match policy:
        case "repeat":
            return Repeat()
        case "shallow":
            return Shallow(d_model)
        case _:
            return Copy(d_model)
