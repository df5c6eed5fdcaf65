"""The guides' trainer of a model with learned sequence length. Letters: B batch, N sites."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bkray.errors import ConfigError
from bkray.guides.length import AdaptiveSequenceLengthWrapper
from bkray.guides.trainer import descend, device_for
from bkray.train.measure import speed

ROUNDS = 5
"""Paired timings behind ``speedup_measured``."""


class LearnedSequenceLengthTrainer:
    """Trains a wrapped model step by step, and scores it with and without learned length.

    Args:
        device: where batches, and the model, are sent; default: where the model is.

    Raises:
        ConfigError: a GPU is asked for where there is none.
    """

    def __init__(
        self,
        model: AdaptiveSequenceLengthWrapper,
        optimizer: torch.optim.Optimizer,
        device: str | torch.device | None = None,
    ) -> None:
        self.device = device_for(model, device)
        self.model, self.optimizer = model.to(self.device), optimizer
        self.reset_statistics()

    def train_step(
        self, x_batch: Tensor, y_batch: Tensor, use_adaptive_length: bool = True
    ) -> dict[str, float]:
        """Train on one batch, tokens (B, N) and targets (B, N) or (B * N,); return its numbers.

        Without ``use_adaptive_length`` the base model is trained as it is, and numbers of lengths
        are left out.

        Raises:
            ConfigError: the length predictor has an output layer that the optimizer does not know.
        """
        self.model.train()
        if use_adaptive_length:
            self._check_optimizer()
        said = self.model.predict(x_batch.to(self.device), use_adaptive_length)
        losses = self.model.losses(said, y_batch.to(self.device))
        descend(self.model, self.optimizer, losses[0])
        total_loss, ce_loss, length_cost = torch.stack([x.detach() for x in losses]).tolist()
        self.num_batches += 1
        self.total_ce_loss += ce_loss
        self.total_length_cost += length_cost
        metrics = {"total_loss": total_loss, "ce_loss": ce_loss, "length_cost": length_cost}
        if use_adaptive_length:
            info = self.model.length_info(said)
            metrics |= {name: info[name] for name in ("avg_predicted_length", "speedup_estimate")}
        return metrics

    @torch.no_grad()
    def evaluate(
        self, dataloader: Iterable[tuple[Tensor, Tensor]], use_adaptive_length: bool = True
    ) -> dict[str, Any]:
        """Return means over the tokens of all batches, and the model's length statistics of them.

        ``speedup_measured`` is the base model's time over the wrapped one's on the first batch, by
        the clock; it is left out without ``use_adaptive_length``.

        Raises:
            ConfigError: no batch.
        """
        was_training = self.model.training
        self.model.eval()
        self.model.reset_length_statistics()
        sums, n_tokens = torch.zeros(3, dtype=torch.float64), 0
        first_BN = None
        for x_batch, y_batch in dataloader:
            x_BN = x_batch.to(self.device)
            first_BN = x_BN if first_BN is None else first_BN
            said = self.model.predict(x_BN, use_adaptive_length)
            losses = self.model.losses(said, y_batch.to(self.device))
            sums += x_BN.numel() * torch.stack(losses).double().cpu()
            n_tokens += x_BN.numel()
        if first_BN is None:
            raise ConfigError("dataloader has no batch to evaluate on")
        means = sums / n_tokens
        metrics = dict(zip(("loss", "ce_loss", "length_cost"), means.tolist(), strict=True))
        metrics["perplexity"] = means[1].exp().item()
        if use_adaptive_length:
            metrics |= self.model.get_length_statistics()
            metrics["speedup_measured"] = self._speedup(first_BN)
        self.model.train(was_training)
        return metrics

    def get_average_metrics(self) -> dict[str, float]:
        """Return means over the training steps since the last reset; NaN where there was none."""
        n = self.num_batches
        return {
            "avg_ce_loss": self.total_ce_loss / n if n else math.nan,
            "avg_length_cost": self.total_length_cost / n if n else math.nan,
        }

    def reset_statistics(self) -> None:
        """Start the sums over training steps anew."""
        self.num_batches, self.total_ce_loss, self.total_length_cost = 0, 0.0, 0.0

    def _speedup(self, x_BN: Tensor) -> float | None:
        positions = self.model.language_model.positions
        if positions is not None and x_BN.shape[1] > positions.num_embeddings:
            return None  # the base model alone has no time to compare with
        model = self.model.learned_length()
        return speed(model, self.model.language_model, x_BN, rounds=ROUNDS).speedup

    def _check_optimizer(self) -> None:
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if id(self.model.length_predictor.checked().down.weight) not in known:
            raise ConfigError(
                "optimizer does not hold the length predictor's output layer: "
                "assign length_bins before making the optimizer"
            )
