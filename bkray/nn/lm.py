"""The language model: one class with slots. Letters: B batch, N sites, D width, V vocabulary."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.nn.beyond import Answer
from bkray.nn.block import Block, StreamedBlock
from bkray.nn.depth import Deep, Sparsity
from bkray.nn.mixer import State, StreamingMixer
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
    beyond: Answer | None = None
    """What each site but those of the shortest bin would have behind a cut; ``None`` where the
    last computed output is repeated, and in evaluation."""


class Carried(NamedTuple):
    """What a model knows of a sequence behind a chunk of it; ``Carried()`` is its start."""

    n_sites: int = 0
    """Sites so far: the position of the next one."""
    states: tuple[State | None, ...] = ()
    """Of each layer's mixer; ``None`` where no token has reached the layer."""


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
    carried: Carried | None = None
    """What goes into the next chunk, where the tokens are a chunk of a stream."""
    sure_BN: Tensor | None = None
    """ACT with early exit in evaluation only: who left because a head was sure, not by halting."""


class DepthPolicy(Protocol):
    """Runs the blocks over the hidden states and says how deep each token went.

    A policy with ``reads = True`` is also given ``read``, the model's norm and head. One with
    ``streams = True`` gives blocks the running sites of a row and none else, in order, so that
    rows may come in chunks.
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

    def forward(
        self, tokens_BN: Tensor, carried: Carried | None = None, *, told: bool = True
    ) -> Prediction:
        """Return logits for the token after each site.

        Args:
            carried: given where the tokens are a chunk of longer rows: what the chunk before
                carried, or ``Carried()`` at their start. The prediction has what to carry on.
            told: False where the states alone are wanted; the logits are then empty.

        Raises:
            ConfigError: more sites than learned positions; a model that takes whole rows alone.
        """
        if carried is None:
            return self.run(self.embed(tokens_BN))
        states = carried.states or self._no_states()
        layers = [
            StreamedBlock(block, state)  # type: ignore[arg-type]
            for block, state in zip(self.blocks, states, strict=True)
        ]
        first = carried.n_sites
        said = self._through(layers, self.embed(tokens_BN, first), first, told)
        behind = Carried(first + tokens_BN.shape[1], tuple(layer.state for layer in layers))
        return said._replace(carried=behind)

    def stream(
        self, tokens_BN: Tensor, carried: Carried | None = None
    ) -> tuple[Prediction, Carried]:
        """Return logits for a chunk of longer rows, and what the next chunk needs."""
        said: Prediction = self(tokens_BN, Carried() if carried is None else carried)
        assert said.carried is not None
        return said, said.carried

    def _no_states(self) -> Sequence[None]:
        check_streams(self)
        return [None] * len(self.blocks)

    def embed(self, tokens_BN: Tensor, first: int = 0) -> Tensor:
        """Return the hidden states before the first layer, (B, N, D), from position ``first``."""
        hidden_BND: Tensor = self.embedding(tokens_BN)
        if self.positions is None:
            return hidden_BND
        n_sites = first + tokens_BN.shape[1]
        if n_sites > self.positions.num_embeddings:
            raise ConfigError(
                f"position=learned knows {self.positions.num_embeddings} positions, "
                f"got {n_sites} tokens: raise model.n_seq or use another position"
            )
        placed_BND: Tensor = hidden_BND + self.positions(sites_of(hidden_BND, first))
        return placed_BND

    def run(self, hidden_BND: Tensor, layers: Sequence[nn.Module] | None = None) -> Prediction:
        """Return what the layers and the head make of embedded tokens.

        ``layers`` may stand in for those of the model, one for each.
        """
        return self._through(layers or list(self.blocks), hidden_BND, 0, True)

    def _through(
        self,
        layers: Sequence[nn.Module | StreamedBlock],
        hidden_BND: Tensor,
        first: int,
        told: bool,
    ) -> Prediction:
        head = {"read": self.read} if getattr(self.depth, "reads", False) else {}
        position_BN = sites_of(hidden_BND, first)
        deep = self.depth(layers, hidden_BND, position_BN, **head)  # type: ignore[arg-type]
        logits_BNV = deep.logits_BNV
        if logits_BNV is None:
            logits_BNV = self.read(deep.hidden_BND if told else deep.hidden_BND[:, :0])
        return Prediction(
            logits_BNV,
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


def sites_of(hidden_BND: Tensor, first: int = 0) -> Tensor:
    """Return the place of every site in its row, (B, N), where the first is at ``first``."""
    last = first + hidden_BND.shape[1]
    return torch.arange(first, last, device=hidden_BND.device).expand(hidden_BND.shape[:2])


def check_streams(model: nn.Module) -> None:
    """Raise ``ConfigError`` where a model cannot take a row in chunks."""
    depth = getattr(model, "depth", model)
    if not getattr(depth, "streams", False):
        raise ConfigError(
            f"{type(depth).__name__} takes whole rows alone and carries no state from chunk to "
            "chunk: use a built-in model with model.multiscale=false and model.length=fixed"
        )
    for block in getattr(model, "blocks", ()):
        if not isinstance(block.mixer, StreamingMixer):
            raise ConfigError(
                f"{type(block.mixer).__name__} carries no state from chunk to chunk: use "
                "model.mixer_scale=1, or a mixer with a stream method"
            )
