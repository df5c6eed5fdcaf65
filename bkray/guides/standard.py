"""The guides' standard model, which runs every token through every layer.

Arguments keep the guides' spelling and order. Letters: B batch, N sites, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bkray.config import ModelConfig
from bkray.errors import ConfigError
from bkray.nn.block import Block
from bkray.nn.build import feed_forward, language_model, mixer
from bkray.overrides import build

SPELLINGS = {"model.": "", "n_experts": "num_experts", "dropout": "dropout_p"}
"""Our words in an error, and those that the user wrote."""


class MoEResNetBKLayer(nn.Module):
    """One whole layer: norm, BK mixer, norm, experts, each part added to the residual stream.

    Raises:
        ConfigError: a size that is not allowed, or ``top_k`` above ``num_experts``.
    """

    causal = True

    def __init__(
        self,
        d_model: int,
        n_seq: int,
        num_experts: int = 4,
        top_k: int = 1,
        dropout_p: float = 0.1,
    ) -> None:
        super().__init__()
        config = model_config(
            d_model=d_model, n_seq=n_seq, num_experts=num_experts, top_k=top_k, dropout=dropout_p
        )
        self.n_seq = n_seq
        self.block = Block(d_model, mixer(config), feed_forward(config), dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next states of ``x``, (B, N, D).

        Raises:
            ConfigError: more than ``n_seq`` sites.
        """
        check_length(x.shape[1], self.n_seq)
        hidden_BND: Tensor
        hidden_BND, _ = self.block(x, positions(x), None)
        return hidden_BND


class LanguageModel(nn.Module):
    """Embedding with learned positions, ``n_layers`` layers, norm, head.

    ``language_model`` is the model within, whose pass also says layers run and routing.

    Raises:
        ConfigError: a size that is not allowed, or ``top_k`` above ``num_experts``.
    """

    causal = True

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 64,
        n_layers: int = 4,
        n_seq: int = 128,
        num_experts: int = 4,
        top_k: int = 1,
        dropout_p: float = 0.1,
    ) -> None:
        super().__init__()
        config = model_config(
            d_model=d_model,
            n_seq=n_seq,
            num_experts=num_experts,
            top_k=top_k,
            dropout=dropout_p,
            n_layers=n_layers,
            position="learned",
        )
        self.d_model, self.n_layers, self.n_seq = d_model, n_layers, n_seq
        self.language_model = language_model(config, vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, N, V) for the token after each of ``x``, (B, N).

        Raises:
            ConfigError: more than ``n_seq`` tokens.
        """
        check_length(x.shape[1], self.n_seq)
        logits_BNV: Tensor = self.language_model(x).logits_BNV
        return logits_BNV


def model_config(*, num_experts: int, top_k: int, **knobs: Any) -> ModelConfig:
    """Return the config of these arguments; ``knobs`` are parts of ``ModelConfig`` by name.

    Raises:
        ConfigError: in the guides' spelling.
    """
    knobs["n_experts"] = num_experts
    if num_experts > 1 or top_k != 1:  # the guides' top_k=1 means nothing beside one expert
        knobs["top_k"] = top_k
    try:
        return build({f"model.{name}": value for name, value in knobs.items()}).model
    except ConfigError as error:
        said = str(error)
        for ours, theirs in SPELLINGS.items():
            said = said.replace(ours, theirs)
        raise ConfigError(said) from None


def rows_of(targets: Tensor, logits: Tensor) -> Tensor:
    """Return targets (B, N) or (B * N,) in the rows of their logits (B, N, V).

    Raises:
        ConfigError: not one target per token.
    """
    n_tokens = logits.shape[0] * logits.shape[1]
    if targets.numel() != n_tokens:
        raise ConfigError(
            f"targets must hold one token for each of the {n_tokens} logits, "
            f"got shape {tuple(targets.shape)}"
        )
    return targets.reshape(logits.shape[:2])


def check_length(n_sites: int, n_seq: int) -> None:
    """Refuse a sequence longer than the model was built for."""
    if n_sites > n_seq:
        raise ConfigError(
            f"the sequence must have at most n_seq={n_seq} tokens, got {n_sites}: "
            "cut it, or build the model with a larger n_seq"
        )


def positions(x_BND: Tensor) -> Tensor:
    """Return the place of every site in its row, (B, N)."""
    return torch.arange(x_BND.shape[1], device=x_BND.device).expand(x_BND.shape[:2])
