"""Losses of a generator over rows of embeddings, in training and on held-out rows.

Letters: B rows, L frames, T frames of training, D channels, C numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bkray.config import TrialConfig
from bkray.data.augmentation import augmented
from bkray.data.of_generator import Split
from bkray.nn.vae import pooled
from bkray.nn.vae_loss import vae_loss
from bkray.train.evaluate import Evaluation
from bkray.train.step import Numbers, Part


def told(config: TrialConfig, label_B: Tensor) -> Tensor | None:
    """Return what the model is told of the classes."""
    return label_B if config.generator.conditioned else None


@dataclass(slots=True)
class RowTally:
    """Adds up the losses of a step, means over its rows; ``weight`` is that of the divergence."""

    config: TrialConfig
    weight: float
    numbers: Numbers = field(default_factory=dict)
    load_LE: Tensor | None = None
    count_LE: Tensor | None = None
    n_rows: int = 0
    """Of all parts."""

    def expect(self, parts: Sequence[Part]) -> None:
        self.n_rows = sum(len(label_B) for _, label_B in parts)

    def backward(self, model: nn.Module, part: Part, autocast: torch.autocast) -> None:
        knobs = self.config.generator
        x_BLD, label_B = part[0].to(next(model.parameters()).dtype), part[1]
        read_BLD = target_BLD = x_BLD
        learned = knobs.upsampling == "learned"
        if knobs.augmentation is not None and knobs.augmentation != "off":
            draw = _draws_of(x_BLD.device)
            read_BLD, target_BLD = augmented(x_BLD, label_B, knobs.augmentation, draw)
        with autocast:
            said = model(read_BLD, told(self.config, label_B), full_length=learned)
        if read_BLD is not target_BLD:
            said = said._replace(pooled_BTD=pooled(target_BLD, self.config.n_seq))
        loss = vae_loss(said, self.weight, full_target_BLD=target_BLD if learned else None)
        share = len(label_B) / self.n_rows
        per_value = share / said.short_BTD[0].numel()
        numbers = {
            "loss_nats": loss.total_nats * per_value,
            "reconstruction_nats": loss.reconstruction_nats * per_value,
            "kl_nats": loss.kl_nats * share,
        }
        torch.autograd.backward(numbers["loss_nats"])
        for name, value in numbers.items():
            self.numbers[name] = self.numbers.get(name, 0) + value.detach()


@torch.no_grad()
def evaluated(
    config: TrialConfig, model: nn.Module, rows: Split, autocast: torch.autocast
) -> Evaluation:
    """Return the loss at full weight, and how much of the rows' variance comes back.

    Explained variance is at the full length, of all values of all rows: one less the squared
    error over the squared distance from the training rows' mean.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    weight, n_values = config.generator.kl_weight or 0.0, rows.x_NLD[0].numel()
    learned = config.generator.upsampling == "learned"
    total_C = torch.zeros(4, dtype=torch.float64)
    for first in range(0, len(rows.label_N), config.train.batch_size):
        chosen = slice(first, first + config.train.batch_size)
        x_BLD = rows.x_NLD[chosen].to(device, next(model.parameters()).dtype)
        with autocast:
            said = model(x_BLD, told(config, rows.label_N[chosen].to(device)))
        loss = vae_loss(said, weight, full_target_BLD=x_BLD if learned else None)
        per_row = torch.stack(
            [
                loss.total_nats / said.short_BTD[0].numel(),
                loss.kl_nats,
                (said.full_BLD - x_BLD).square().sum((1, 2)).mean(),
                x_BLD.square().sum((1, 2)).mean(),
            ]
        )
        total_C += per_row.double().cpu() * len(x_BLD)
    model.train(was_training)
    loss_nats, kl_nats, error, variance = (total_C / len(rows.label_N)).tolist()
    metrics = {
        "generator/explained_variance": 1 - error / variance,
        "generator/reconstruction_error": error / n_values,
        "generator/kl_nats": kl_nats,
    }
    return Evaluation(loss_nats, metrics)


def _draws_of(device: torch.device) -> torch.Generator:
    """Return the global generator of a device, whose state a checkpoint holds."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
