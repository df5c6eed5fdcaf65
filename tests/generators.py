"""Sequence generators small enough to test with, on made sequences."""

from collections.abc import Mapping
from typing import Any

from bkray.config import TrialConfig
from bkray.overrides import build

TINY: Mapping[str, Any] = {
    "generator.training_sequence_length": 8,
    "generator.hidden_dim": 16,
    "generator.latent_dim": 4,
    "generator.kl_warmup_steps": 4,
    "generator.synthetic_per_class": 4,
    "data.n_frames": 64,
    "data.n_channels": 4,
    "data.n_classes": 2,
    "data.n_per_class": 16,
    "train.steps": 8,
    "train.batch_size": 8,
    "train.eval_every": 4,
    "train.checkpoint_every": 4,
    "train.device": "cpu",
    "optimizer.warmup_steps": 2,
    "optimizer.lr": 1e-3,
}


def tiny_generator(**knobs: Any) -> TrialConfig:
    """Return a generator's config; ``knobs`` are last parts of config paths, with ``__`` for dots
    where they are whole ones."""
    return build({**TINY, **{name.replace("__", "."): knobs[name] for name in knobs}})
