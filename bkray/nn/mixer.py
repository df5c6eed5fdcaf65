"""What a token mixer is. Letters: B batch, N sites, D width."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, ...]
"""What a mixer has to know of the sites behind it; rows first, of a size that does not grow."""


@runtime_checkable
class Mixer(Protocol):
    """Moves content between the sites of a sequence.

    ``causal`` claims that site ``t`` depends on sites ``0..t`` alone, also when the sequence is a
    part of a longer one whose stopped tokens were taken out; the contract suite checks the claim,
    and the language model refuses a mixer that does not make it.
    """

    causal: bool

    def __call__(self, hidden_BND: Tensor, position_BN: Tensor) -> Tensor:
        """Return the mixed sequence, (B, N, D). ``position_BN`` counts in the whole sequence."""
        ...


@runtime_checkable
class StreamingMixer(Mixer, Protocol):
    """A mixer that can go on where it ended, so that a sequence may come in chunks of any size."""

    def stream(
        self,
        hidden_BND: Tensor,
        position_BN: Tensor,
        there_BN: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Return the mixed chunk and the state behind it.

        Args:
            there_BN: False where a row is padded, behind its own sites; ``None`` for no padding.
            state: the one behind the chunk before; ``None`` at the start of a sequence.

        A row hands on the state of its last own site, and of its last chunk where it has none.
        """
        ...


def last_own(of_sites_BND: Tensor, there_BN: Tensor | None, before_BD: Tensor | None) -> Tensor:
    """Return what each row's last own site has, (B, ...); a row without any has ``before``, or 0.

    A copy: a view would keep the whole chunk in memory.
    """
    last_BD = of_sites_BND[:, -1]
    if there_BN is None:
        return last_BD.clone()
    n_own_B = there_BN.sum(1)
    rows_B = torch.arange(len(n_own_B), device=n_own_B.device)
    own_BD = of_sites_BND[rows_B, (n_own_B - 1).clamp(min=0)]
    none_B = (n_own_B == 0).view(-1, *[1] * (own_BD.dim() - 1))
    # Chosen, not multiplied by 0: a NaN in the padding would pass into the state.
    return torch.where(
        none_B, torch.zeros_like(own_BD) if before_BD is None else before_BD, own_BD
    )
