"""Decides on the device, without a copy to the host, which updates change no parameter."""

import math

import torch
from torch import Tensor

from bkray.stability import SPIKE_RATIO


class Guard:
    """Withholds updates that are not finite, and the first ``left`` ones of a spiking step.

    A step spikes where its loss is more than twice the one before; ``last_loss_nats`` is that of
    the step before the first one guarded.
    """

    def __init__(self, device: torch.device, last_loss_nats: float | None, left: int) -> None:
        before = math.inf if last_loss_nats is None else last_loss_nats
        self._last = torch.tensor(before, dtype=torch.float64, device=device)
        self._left = torch.tensor(left, device=device)

    def withholds(self, loss_nats: Tensor, grad_norm: Tensor) -> Tensor:
        """Return whether this step's update is withheld, a boolean on the device."""
        loss = loss_nats.double()
        spikes = (loss > SPIKE_RATIO * self._last) & (self._left > 0)
        self._left = self._left - spikes.to(self._left.dtype)
        self._last = loss
        return ~(torch.isfinite(loss) & torch.isfinite(grad_norm)) | spikes
