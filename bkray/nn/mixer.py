"""What a token mixer is. Letters: B batch, N sites, D width."""

from typing import Protocol, runtime_checkable

from torch import Tensor


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
