"""What the sequence generator is trained on: reconstruction and KL in nats, and its warm-up.

Letters: B batch, L sites of a row, T sites of training, D width, Z latent width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bkray.errors import ConfigError


class Reconstruction(NamedTuple):
    """What a pass says of its rows."""

    short_BTD: Tensor
    """Reconstruction at the training length."""
    full_BLD: Tensor | None
    """The same at the length of the rows, upsampled; ``None`` where it was not asked for."""
    pooled_BTD: Tensor
    """What the first one is to be like: the rows, pooled to the training length."""
    mean_BZ: Tensor
    log_variance_BZ: Tensor


class VAELoss(NamedTuple):
    """Scalars in nats per row, means over rows, so that parts of a batch add up exactly."""

    total_nats: Tensor
    """What is trained on: reconstruction, upsampling and the weighted KL."""
    reconstruction_nats: Tensor
    """Squared error at the training length over twice the noise variance: 0 where perfect."""
    kl_nats: Tensor
    upsampling_nats: Tensor
    """The same error at the full length times T / L; 0 without ``full_target_BLD``."""


def vae_loss(
    said: Reconstruction,
    kl_weight: float,
    *,
    noise_variance: float = 1.0,
    full_target_BLD: Tensor | None = None,
) -> VAELoss:
    """Return the loss in nats per row: Gaussian reconstruction and ``kl_weight`` times the KL.

    Args:
        kl_weight: 1 for the bound on the likelihood; below it while warming up.
        noise_variance: of the observations, above 0, in the unit of the rows squared; it sets how
            much an error weighs beside the KL.
        full_target_BLD: the rows themselves where the learned upsampler is to be trained.
    """
    short_nats = _squared_error(said.short_BTD, said.pooled_BTD) / (2 * noise_variance)
    kl = kl_nats(said.mean_BZ, said.log_variance_BZ).mean()
    upsampling_nats = torch.zeros_like(kl)
    if full_target_BLD is not None:
        if said.full_BLD is None:
            raise ConfigError("full_target_BLD needs a pass with full_length=True")
        share = said.short_BTD.shape[1] / full_target_BLD.shape[1]
        full = _squared_error(said.full_BLD, full_target_BLD)
        upsampling_nats = share * full / (2 * noise_variance)
    total = short_nats + upsampling_nats + kl_weight * kl
    return VAELoss(total, short_nats, kl, upsampling_nats)


def kl_nats(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """Return KL(posterior, standard normal) of each row, (B,), at least 0 up to rounding."""
    return 0.5 * (mean_BZ.square() + log_variance_BZ.expm1() - log_variance_BZ).sum(1)


def kl_weight(step: int, warmup_steps: int, final: float = 1.0) -> float:
    """Return the weight of the KL at ``step`` (from 1): linear up to ``final``, then constant."""
    return final if step >= warmup_steps else final * step / warmup_steps


def _squared_error(x_BLD: Tensor, target_BLD: Tensor) -> Tensor:
    return (x_BLD - target_BLD).square().sum((1, 2)).mean()
