"""The guides' evaluation of long streams, and how long rows fit. Letters: T tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bkray.data.vocabulary import Tokens
from bkray.errors import ConfigError
from bkray.guides.trainer import device_for
from bkray.nn.lm import check_streams
from bkray.train.streaming import stream_loss


@dataclass(frozen=True, slots=True)
class MemoryOptimization:
    """One switch for chunked checkpointing and a chunked loss head: ``train.chunk`` of a trial.

    ``chunk`` sites of a row are held at once: the same gradients for one more forward pass.
    """

    enabled: bool = True
    chunk: int = 4096

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ConfigError(f"chunk must be at least 1, got {self.chunk}")

    def check(self, model: nn.Module) -> None:
        """Raise ``ConfigError`` where a model cannot be trained in chunks."""
        check_streams(model)
        dropout = max((m.p for m in model.modules() if isinstance(m, nn.Dropout)), default=0.0)
        if dropout:
            raise ConfigError(
                f"dropout must be 0 to train in chunks, got {dropout}: a chunk is computed twice "
                "and would drop other units"
            )


class StreamingEvaluator:
    """Scores a stream of any length in the memory of ``chunk_size`` tokens.

    The state is carried from chunk to chunk, so their size changes no number; attention looks back
    over a window. Positions that are learned end at the model's ``n_seq``.

    Args:
        model: one of the guides, or of ours.
        device: where tokens, and the model, are sent; default: where the model is.

    Raises:
        ConfigError: a GPU is asked for where there is none, or a model that takes whole rows
            alone.
    """

    def __init__(
        self,
        model: nn.Module,
        chunk_size: int = 4096,
        device: str | torch.device | None = None,
    ) -> None:
        self.device = device_for(model, device)
        self.model, self.chunk_size = model.to(self.device), chunk_size
        check_streams(inner_model(model))

    def evaluate_streaming(
        self,
        data: Tensor | Tokens,
        max_tokens: int | None = None,
        *,
        progress: Callable[[int, float], None] | None = None,
    ) -> dict[str, float]:
        """Return ``loss`` in nats per token, ``perplexity``, ``total_tokens``, ``num_chunks``.

        Each token of ``data`` (T,) but the first is a target, ``max_tokens`` of them at most.

        Raises:
            ConfigError: fewer than two tokens, or a number out of range.
        """
        tokens = data.numpy(force=True) if isinstance(data, Tensor) else data
        if tokens.ndim != 1:
            raise ConfigError(f"data must be one row of tokens, got shape {tokens.shape}")
        n_tokens = len(tokens) - 1 if max_tokens is None else min(max_tokens, len(tokens) - 1)
        said = stream_loss(
            inner_model(self.model), tokens, n_tokens, chunk=self.chunk_size, progress=progress
        )
        return {
            "loss": said.loss_nats,
            "perplexity": said.ppl,
            "total_tokens": said.n_tokens,
            "num_chunks": said.n_chunks,
        }


def inner_model(model: nn.Module) -> nn.Module:
    """Return the model within one of the guides, or the model itself."""
    inner = getattr(model, "language_model", model)
    assert isinstance(inner, nn.Module)
    return inner
