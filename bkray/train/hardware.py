"""What a trial computes on, and in which numbers."""

import torch

from bkray.config import TrialConfig
from bkray.errors import ConfigError


def device_of(config: TrialConfig) -> torch.device:
    """Return the device that ``train.device`` means here.

    Raises:
        ConfigError: there is no such one, or it cannot compute as configured.
    """
    name = config.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda, but torch sees no GPU here: use auto or cpu")
    if name == "cpu" and config.train.precision == "bf16":
        raise ConfigError("train.precision=bf16 needs a GPU: use float32 on a CPU")
    return torch.device(name)


def autocast_of(config: TrialConfig) -> torch.autocast:
    """Return what passes run under: bf16 where ``train.precision`` says so, else nothing."""
    enabled = config.train.precision == "bf16"
    return torch.autocast("cuda" if enabled else "cpu", torch.bfloat16, enabled=enabled)
