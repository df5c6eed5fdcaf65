"""The language model: one class with slots. Letters: B batch, N sites, D width, V vocabulary."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.nn.block import Block
from bkray.nn.depth import Deep
from bkray.nn.moe import Routing

EMBEDDING_STD = 0.02
"""Token and position embeddings start small; a unit normal start costs every family."""


class Prediction(NamedTuple):
    """What any language model returns, the user's own included."""

    logits_BNV: Tensor
    layers_BN: Tensor | None = None
    """Layers run by each token, whole numbers."""
    remainder_BN: Tensor | None = None
    """Halting weight left at the stop; with ``layers`` it makes the ponder cost."""
    routing: tuple[Routing, ...] = ()
    """One entry per layer with experts."""


class DepthPolicy(Protocol):
    """Runs the blocks over the hidden states and says how deep each token went."""

    def __call__(
        self, blocks: Sequence[Block], hidden_BND: Tensor, position_BN: Tensor
    ) -> Deep: ...


class LanguageModel(nn.Module):
    """Embedding, blocks under a depth policy, norm, head.

    Args:
        n_positions: learned positions to hold; ``None`` for no position embedding.

    Raises:
        ConfigError: a mixer does not declare itself causal.
    """

    causal = True

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        blocks: Sequence[Block],
        depth: DepthPolicy,
        n_positions: int | None,
    ) -> None:
        super().__init__()
        for block in blocks:
            if not getattr(block.mixer, "causal", False):
                raise ConfigError(
                    f"a language model needs causal mixers, got {type(block.mixer).__name__}, "
                    "which does not declare causal=True: its loss would leak the next token"
                )
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.positions = nn.Embedding(n_positions, d_model) if n_positions is not None else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=EMBEDDING_STD)
        self.blocks = nn.ModuleList(blocks)
        self.depth = depth
        self.norm = nn.RMSNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, tokens_BN: Tensor) -> Prediction:
        """Return logits for the token after each site.

        Raises:
            ConfigError: more sites than learned positions.
        """
        n_sites = tokens_BN.shape[1]
        position_BN = torch.arange(n_sites, device=tokens_BN.device).expand_as(tokens_BN)
        hidden_BND = self.embedding(tokens_BN)
        if self.positions is not None:
            if n_sites > self.positions.num_embeddings:
                raise ConfigError(
                    f"position=learned knows {self.positions.num_embeddings} positions, "
                    f"got {n_sites} tokens: raise model.n_seq or use another position"
                )
            hidden_BND = hidden_BND + self.positions(position_BN)
        deep = self.depth(list(self.blocks), hidden_BND, position_BN)  # type: ignore[arg-type]
        logits_BNV = self.head(self.norm(deep.hidden_BND))
        return Prediction(logits_BNV, deep.layers_BN, deep.remainder_BN, deep.routing)
