"""What answers for the sites behind a cut, nearly for free.

Letters: B batch, N sites, D width, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus

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


class Answer(NamedTuple):
    """What is answered at each site: a guess and, where tokens are copied, the copied ones."""

    guess_BNV: Tensor
    """Logits."""
    copied_BN: Tensor | None = None
    """The token that is copied; ``NOTHING`` where none is."""
    trust_BN: Tensor | None = None
    """Log-odds of the copied token, whatever the guess has for it besides."""

    def logits(self) -> Tensor:
        """Return the mixture of guess and copy, (B, N, V)."""
        if self.copied_BN is None or self.trust_BN is None:
            return self.guess_BNV
        guess_BNV = self.guess_BNV.log_softmax(-1)
        token_BN1 = self.copied_BN[..., None].clamp(min=0)
        guess_BN1 = guess_BNV.gather(-1, token_BN1)
        # p (1 - w) everywhere, w more at the copied token: over 1 - w, and only that one moves.
        mixed_BN1 = torch.where(
            self.copied_BN[..., None] == NOTHING,
            guess_BN1,
            torch.logaddexp(guess_BN1, self.trust_BN[..., None].to(guess_BNV.dtype)),
        )
        if torch.is_grad_enabled():
            return guess_BNV.scatter(-1, token_BN1, mixed_BN1)
        return guess_BNV.scatter_(-1, token_BN1, mixed_BN1)  # no copy of a large tensor

    def losses(self, targets_BN: Tensor) -> Tensor:
        """Return the cross-entropy of ``logits`` in nats, (B, N), in float32 at least.

        The guess's own is all that is computed over the vocabulary.
        """
        precise = torch.promote_types(self.guess_BNV.dtype, torch.float32)
        guess_BN = cross_entropy(
            self.guess_BNV.flatten(0, 1).to(precise), targets_BN.flatten(), reduction="none"
        ).view_as(targets_BN)
        if self.copied_BN is None or self.trust_BN is None:
            return guess_BN
        trust_BN = self.trust_BN.to(precise)
        hit_BN = torch.where(
            self.copied_BN == targets_BN, -torch.logaddexp(-guess_BN, trust_BN), guess_BN
        )
        return torch.where(self.copied_BN == NOTHING, guess_BN, hit_BN + softplus(trust_BN))


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
    ) -> Answer:
        """Return the answers of the sites from ``first`` on."""
        return Answer(read(embedded_BND[:, first:] + self.kind(start_BF)[:, None]))


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
    ) -> Answer:
        """Return the answers of the sites from ``first`` on."""
        guess: Answer = self.shallow(tokens_BN, embedded_BND, start_BF, read, first)
        copied_BN, run_BN = longest_follower(tokens_BN, self.N_RUNS)
        return guess._replace(
            copied_BN=copied_BN[:, first:], trust_BN=self.trust[run_BN[:, first:].clamp(min=0)]
        )


def beyond(policy: str, d_model: int) -> Repeat | Shallow | Copy:
    """Return the policy of that name."""
    match policy:
        case "repeat":
            return Repeat()
        case "shallow":
            return Shallow(d_model)
        case _:
            return Copy(d_model)
