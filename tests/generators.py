"""Sequence generators small enough to test with, on made sequences; and what is seen of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bkray.config import TrialConfig
from bkray.events import Measured
from bkray.overrides import build
from bkray.train.checkpoint import write
from bkray.trial import compose, prepared, run

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


NOT_MADE: Mapping[str, Any] = dict.fromkeys(
    ("data.n_frames", "data.n_channels", "data.n_classes", "data.n_per_class")
)
"""Leaves the knobs of made sequences out, for those of a file."""


def frames_generated(config: TrialConfig, folder: Path) -> Any:
    trial = compose(config, prepared(config), None)
    return trial.model.sample(2, labels=torch.tensor([0, 1])).shape


def rows_per_class(config: TrialConfig, folder: Path) -> Any:
    (measured,) = [event for event in run(config, None) if isinstance(event, Measured)]
    return measured.metrics["generator/downstream_rows_per_class"]


def variance_of_samples(config: TrialConfig, folder: Path) -> Any:
    (measured,) = [event for event in run(config, None) if isinstance(event, Measured)]
    return measured.metrics["generator/sample_variance_ratio"]


def write_generator(path: Path) -> Path:
    """Write the checkpoint of a generator from another seed."""
    config = tiny_generator(seed=9)
    write(path, {"model": compose(config, prepared(config), None).model.state_dict()})
    return path


def write_embeddings(path: Path, seed: int, n_rows: int = 24) -> Path:
    """Write rows of 12 frames x 2 in two classes."""
    np.save(path, np.random.default_rng(seed).normal(size=(n_rows, 12, 2)))
    np.save(path.with_name(f"{path.stem}.labels.npy"), np.arange(n_rows) % 2)
    return path
