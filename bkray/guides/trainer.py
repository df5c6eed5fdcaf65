"""The guides' trainer of a model with adaptive computation time. Letters: B batch, N sites."""

import math

import torch
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.guides.act import ACTLanguageModel

MAX_GRAD_NORM = 0.5
"""The guides' clipping."""


class ACTTrainer:
    """Trains a model step by step and adds up what it cost.

    Args:
        device: where batches, and the model, are sent; default: where the model is.

    Raises:
        ConfigError: a GPU is asked for where there is none.
    """

    def __init__(
        self,
        model: ACTLanguageModel,
        optimizer: torch.optim.Optimizer,
        device: str | torch.device | None = None,
    ) -> None:
        self.device = device_for(model, device)
        self.model, self.optimizer = model.to(self.device), optimizer
        self.reset_statistics()

    def train_step(self, x_batch: Tensor, y_batch: Tensor) -> dict[str, float]:
        """Train on one batch, tokens (B, N) and targets (B, N) or (B * N,); return its numbers."""
        self.model.train()
        logits, ponder_cost = self.model(x_batch.to(self.device))
        losses = self.model.compute_loss(logits, y_batch.to(self.device), ponder_cost)
        descend(self.model, self.optimizer, losses[0])
        total_loss, ce_loss, ponder = torch.stack([loss.detach() for loss in losses]).tolist()
        self.num_batches += 1
        self.total_ponder_cost += ponder
        self.total_ce_loss += ce_loss
        return {
            "total_loss": total_loss,
            "ce_loss": ce_loss,
            "ponder_cost": ponder,
            "avg_layers_executed": self.model.get_avg_layers_executed(),
        }

    def get_average_metrics(self) -> dict[str, float]:
        """Return means over the batches since the last reset; NaN where there was none."""
        n = self.num_batches
        return {
            "avg_ponder_cost": self.total_ponder_cost / n if n else math.nan,
            "avg_ce_loss": self.total_ce_loss / n if n else math.nan,
        }

    def reset_statistics(self) -> None:
        """Start the sums anew."""
        self.num_batches, self.total_ponder_cost, self.total_ce_loss = 0, 0.0, 0.0


def device_for(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """Return the device asked for, or else the one where the model is."""
    chosen = torch.device(device or next(model.parameters()).device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}, but torch sees no GPU here: leave device out")
    return chosen


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down the gradient of ``loss``, clipped as the guides do."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
