"""The language model: one class with slots. Letters: B batch, N sites, D width, V vocabulary."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.nn.block import Block
from bkray.nn.depth import Deep, Sparsity
from bkray.nn.moe import Routing

EMBEDDING_STD = 0.02
"""Token and position embeddings start small; a unit normal start costs every family."""


class Lengths(NamedTuple):
    """What learned length did to a batch. K bins, shortest first."""

    logit_BK: Tensor
    """The predictor's, for each bin."""
    bins_K: Tensor
    """Sites."""
    computed_B: Tensor
    """Sites of each row that ran through the layers; those behind were answered cheaply."""
    beyond_BNV: Tensor | None = None
    """Logits that each site would have behind a cut; ``None`` where the last computed
    output is repeated, and in evaluation."""


class Prediction(NamedTuple):
    """What any language model returns, the user's own included."""

    logits_BNV: Tensor
    layers_BN: Tensor | None = None
    """Layers run by each token, whole numbers."""
    remainder_BN: Tensor | None = None
    """Halting weight left at the stop; with ``layers`` it makes the ponder cost."""
    routing: tuple[Routing, ...] = ()
    """One entry per layer with experts."""
    lengths: Lengths | None = None
    """How many sites of each row were computed, where that is learned."""
    exits: tuple[Tensor, ...] = ()
    """Early exit in training only: the logits of all heads but the last one, each (B, N, V)."""
    sparsity: Sparsity | None = None
    """Which tokens the layers computed, where that is learned."""
    sure_BN: Tensor | None = None
    """ACT with early exit in evaluation only: who left because a head was sure, not by halting."""


class DepthPolicy(Protocol):
    """Runs the blocks over the hidden states and says how deep each token went.

    A policy with ``reads = True`` is also given ``read``, the model's norm and head.
    """

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
        return self.run(self.embed(tokens_BN))

    def embed(self, tokens_BN: Tensor) -> Tensor:
        """Return the hidden states before the first layer, (B, N, D)."""
        hidden_BND: Tensor = self.embedding(tokens_BN)
        if self.positions is None:
            return hidden_BND
        n_sites = tokens_BN.shape[1]
        if n_sites > self.positions.num_embeddings:
            raise ConfigError(
                f"position=learned knows {self.positions.num_embeddings} positions, "
                f"got {n_sites} tokens: raise model.n_seq or use another position"
            )
        placed_BND: Tensor = hidden_BND + self.positions(sites_of(hidden_BND))
        return placed_BND

    def run(self, hidden_BND: Tensor) -> Prediction:
        """Return what the layers and the head make of embedded tokens."""
        head = {"read": self.read} if getattr(self.depth, "reads", False) else {}
        deep = self.depth(list(self.blocks), hidden_BND, sites_of(hidden_BND), **head)  # type: ignore[arg-type]
        return Prediction(
            self.read(deep.hidden_BND) if deep.logits_BNV is None else deep.logits_BNV,
            deep.layers_BN,
            deep.remainder_BN,
            deep.routing,
            exits=deep.exits,
            sparsity=deep.sparsity,
            sure_BN=deep.sure_BN,
        )

    def read(self, hidden_BND: Tensor) -> Tensor:
        """Return the logits that the head reads off hidden states."""
        logits_BNV: Tensor = self.head(self.norm(hidden_BND))
        return logits_BNV


def sites_of(hidden_BND: Tensor) -> Tensor:
    """Return the place of every site in its row, (B, N)."""
    return torch.arange(hidden_BND.shape[1], device=hidden_BND.device).expand(hidden_BND.shape[:2])
