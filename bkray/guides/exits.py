"""The guides' model with early exit.

Arguments keep the guides' spelling and order. Letters: B batch, N sites, V vocabulary, L layers.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.guides.standard import check_length, model_config, positions, rows_of
from bkray.nn.build import language_model
from bkray.nn.depth import DenseDepth
from bkray.nn.exits import ExitDepth
from bkray.nn.lm import Prediction
from bkray.train.step import losses


class EarlyExitLanguageModel(nn.Module):
    """A head behind every layer; a token leaves at the first one that is confident enough.

    ``language_model`` is the model within. In training every token runs through all layers, and
    ``compute_loss`` teaches all heads. ``confidence_threshold`` and ``exit_weight`` may be changed
    at any time.

    Args:
        confidence_threshold: least probability of the likeliest token with which to leave.
        exit_heads: ``own`` for a norm and a head per layer, ``shared`` for the last ones at all.
        exit_weight: weight of an early head's loss, relative to the last one's.

    Raises:
        ConfigError: a value that is not allowed.
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
        confidence_threshold: float = 0.9,
        *,
        exit_heads: Literal["own", "shared"] = "own",
        exit_weight: float = 1.0,
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
            depth="exit",
            exit_heads=exit_heads,
            exit_weight=exit_weight,
        )
        self.vocab_size, self.d_model = vocab_size, d_model
        self.n_layers, self.n_seq = n_layers, n_seq
        self.exit_weight = exit_weight
        self.language_model = language_model(config, vocab_size)
        self.confidence_threshold = confidence_threshold
        self.register_buffer("exit_layer_counts", None, persistent=False)
        self.reset_exit_statistics()

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, first to last."""
        return self.language_model.blocks

    @property
    def confidence_threshold(self) -> float:
        """Least probability of the likeliest token with which to leave."""
        return self._depth.threshold

    @confidence_threshold.setter
    def confidence_threshold(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(
                f"confidence_threshold must be above 0 and at most 1, got {threshold}"
            )
        self._depth.threshold = threshold

    @property
    def _depth(self) -> ExitDepth:
        depth = self.language_model.depth
        assert isinstance(depth, ExitDepth)
        return depth

    def forward(
        self, x: Tensor, use_early_exit: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Return logits (B, N, V) for the token after each of ``x``, (B, N), and who left where.

        Without ``use_early_exit`` all tokens run through all layers, no early head is asked, and
        the logits come alone. ``exit_layers`` are layers run, from 1.

        Raises:
            ConfigError: more than ``n_seq`` tokens.
        """
        check_length(x.shape[1], self.n_seq)
        if not use_early_exit:
            embedded_BND = self.language_model.embed(x)
            deep = DenseDepth()(list(self.blocks), embedded_BND, positions(x))
            return self.language_model.read(deep.hidden_BND)
        said: Prediction = self.language_model(x)
        self.note(said)
        assert said.layers_BN is not None
        return said.logits_BNV, {
            "exit_layers": said.layers_BN,
            "exit_confidences": said.logits_BNV.detach().softmax(-1).amax(-1),
            "exited_mask": said.layers_BN < self.n_layers,
            "prediction": said,
        }

    def compute_loss(
        self, logits: Tensor, targets: Tensor, exit_info: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss over all heads, and the cross-entropy of the last one.

        Without ``exit_info``, and in evaluation, they are both the cross-entropy of ``logits``.

        Args:
            targets: (B, N) or (B * N,), token ids.

        Raises:
            ConfigError: not one target per token.
        """
        exits = () if exit_info is None else exit_info["prediction"].exits
        knobs = model_config(num_experts=1, top_k=1, depth="exit", exit_weight=self.exit_weight)
        said = Prediction(logits, exits=exits)
        numbers = losses(said, rows_of(targets, logits), knobs, None)
        return numbers["total"], numbers["loss_nats"]

    def note(self, said: Prediction) -> None:
        """Count where the tokens of a pass of ``language_model`` left, wherever it was called.

        In training nobody leaves, and nothing is counted.
        """
        assert said.layers_BN is not None
        if not self.training:
            self.exit_layer_counts += said.layers_BN.flatten().bincount(
                minlength=self.n_layers + 1
            )

    def get_exit_statistics(self) -> dict[str, Any]:
        """Return means over the tokens since the last reset, NaN where there was none.

        ``exit_distribution`` is the percentage of tokens that ran through so many layers, from 0,
        for those that a learned length cut away, to ``n_layers``.
        """
        counts: list[int] = self.exit_layer_counts.tolist()
        n_tokens = sum(counts)
        n_layers_run = sum(depth * n for depth, n in enumerate(counts))
        return {
            "avg_exit_layer": n_layers_run / n_tokens if n_tokens else math.nan,
            "exit_distribution": [100 * n / n_tokens if n_tokens else math.nan for n in counts],
            "speedup_estimate": self.n_layers * n_tokens / n_layers_run if n_tokens else math.nan,
            "total_tokens_processed": n_tokens,
        }

    def reset_exit_statistics(self) -> None:
        """Start counting anew."""
        device = self.language_model.head.weight.device
        self.exit_layer_counts = torch.zeros(self.n_layers + 1, dtype=torch.long, device=device)
