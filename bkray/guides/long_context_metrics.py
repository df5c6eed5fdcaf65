"""The guides' numbers of an epoch at one length, and their lines on the console."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LongContextMetrics:
    """An epoch at one length."""

    seq_len: int
    epoch: int
    step: int
    """Steps of the trainer so far, at all lengths."""
    loss: float
    """Mean over the epoch's steps, in nats per token; NaN where one was."""
    perplexity: float
    gradient_norm: float
    """Of the last step, before clipping as all norms."""
    gradient_norm_mean: float
    """Of the finite ones, as its standard deviation."""
    gradient_norm_std: float
    memory_gb: float
    """Peak since the epoch began, 2^30 bytes: allocated on a GPU, of all the process elsewhere."""
    tokens_per_second: float
    spike_count: int
    """Losses more than twice the one before, or not finite."""
    nan_count: int
    """Steps whose loss or gradient norm is NaN; they change nothing."""
    inf_count: int
    """The same for infinite ones."""
    learning_rate: float
    schatten_s1: float | None = None
    """These three ``None`` unless monitored."""
    schatten_s2: float | None = None
    condition_number: float | None = None

    @property
    def gradient_norm_cv(self) -> float:
        """Standard deviation of the gradient norm over its mean; NaN where that is 0."""
        mean = self.gradient_norm_mean
        return self.gradient_norm_std / mean if mean else math.nan

    def __str__(self) -> str:
        return (
            f"Epoch {self.epoch} | Seq {self.seq_len} | Loss {self.loss:.4f} | "
            f"PPL {self.perplexity:.2f} | Grad {self.gradient_norm_mean:.2f} +- "
            f"{self.gradient_norm_std:.2f} | Spikes {self.spike_count} | NaN {self.nan_count} | "
            f"{self.memory_gb:.2f} GB | {self.tokens_per_second:.0f} tok/s"
        )


def log_line(step: int, loss: float, spike_ratio: float | None) -> str:
    """Return the guides' line: ``Step 100 | Loss 3.4500 | SPIKE 2.34x``."""
    spike = "" if spike_ratio is None else f" | SPIKE {spike_ratio:.2f}x"
    return f"Step {step} | Loss {loss:.4f}{spike}"
