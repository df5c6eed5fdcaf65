"""What a generator costs and what pooling leaves it: estimated before, measured after.

Letters: B rows, W validation rows, L frames, T frames of training, D channels.
"""

import statistics
import time

import torch
from torch import Tensor

from bkray.config import SPECTRA, TrialConfig
from bkray.data.made_sequences import SIGNAL_SHARE
from bkray.data.of_generator import READ_ROWS, Split, held_bytes
from bkray.data.sequences import Sequences
from bkray.errors import ConfigError
from bkray.nn.vae import VAEGenerator, interpolated, pooled
from bkray.ops.generator_sizes import (
    GeneratorShape,
    generation_memory,
    gib,
    require_room,
    training_memory,
)
from bkray.ops.memory import available_bytes, freed_memory_given_back
from bkray.ops.pooling import covariance, recoverable
from bkray.train.guard import Guard
from bkray.train.measure import (
    forget_peak_memory,
    machine_lock,
    peak_memory_mib,
    wait,
)
from bkray.train.optim import adamw
from bkray.train.row_losses import RowTally
from bkray.train.step import optimizer_step
from bkray.train.watch import Blocks

ROUNDS = 3
"""Timings of a batch that is generated; their median counts."""

STEPS = 3
"""Taken to see how much memory training holds: the optimizer's own comes with the first."""

MOST_SAMPLED = 1024
"""Rows that the variance of samples is taken over."""

MIB = 2**20


def shape_of(config: TrialConfig, source: Sequences) -> GeneratorShape:
    """Return what the generator of a trial is sized by."""
    knobs = config.generator
    assert knobs.hidden_dim is not None and knobs.latent_dim is not None
    return GeneratorShape(
        input_dim=source.n_channels,
        hidden_dim=knobs.hidden_dim,
        latent_dim=knobs.latent_dim,
        training_sequence_length=config.n_seq,
        learned_upsampling=knobs.upsampling == "learned",
        n_classes=source.n_classes if knobs.conditioned else None,
        mixer=str(knobs.network),
    )


def needs_whole_rows(config: TrialConfig) -> bool:
    """Say whether a step needs rows at their full length; else they are pooled beforehand."""
    knobs = config.generator
    return knobs.upsampling == "learned" or knobs.augmentation != "off"


def check_room(config: TrialConfig, source: Sequences) -> None:
    """Refuse a trial that does not fit into the memory at hand.

    Raises:
        ConfigError: the estimate is above it; the message shows both. Rows lie on the host.
    """
    n_pooled = None if needs_whole_rows(config) else config.n_seq
    rows, host = held_bytes(source, n_pooled), available_bytes()
    if rows > host:
        raise ConfigError(
            f"the rows alone would take {gib(rows)}, where {gib(host)} are free: give fewer or "
            "shorter ones, or train on rows that are pooled beforehand, with "
            "generator.upsampling=linear and generator.augmentation=off"
        )
    on_gpu = config.train.device != "cpu" and torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else host - rows
    require_room(shape_of(config, source), **_batch(config, source), available_bytes=free)


def estimates(config: TrialConfig, source: Sequences, output_length: int) -> dict[str, float]:
    """Return the memory of training and of generating a batch, above an idle process, in MiB."""
    shape = shape_of(config, source)
    batch = _batch(config, source)
    n_rows = batch["batch_size"]
    made = generation_memory(shape, n_rows=n_rows, n_frames=output_length)
    return {
        "generator/training_estimate_mib": training_memory(shape, **batch).total / MIB,
        "generator/generation_estimate_mib": made.total / MIB,
    }


def generator_of(config: TrialConfig, source: Sequences) -> VAEGenerator:
    """Return the model of a config for such data, freshly initialised."""
    knobs = config.generator
    assert knobs.hidden_dim is not None and knobs.latent_dim is not None
    assert knobs.network is not None
    return VAEGenerator(
        source.n_channels,
        knobs.hidden_dim,
        knobs.latent_dim,
        config.n_seq,
        knobs.output_sequence_length or source.n_frames,
        use_learned_upsampling=knobs.upsampling == "learned",
        use_conditioned_vae=bool(knobs.conditioned),
        n_classes=source.n_classes if knobs.conditioned else None,
        mixer=knobs.network,
    )


@torch.no_grad()
def pooling_limits(config: TrialConfig, x_WLD: Tensor) -> dict[str, float]:
    """Return what share of the rows' variance is left by pooling, without any model.

    ``pooled_explained_variance`` is of these very rows, pooled and interpolated back. Of made rows
    ``pooling_bound`` is the most that any decoder could make of the pooled frames, even if it knew
    what the class adds: the noise beside that is Gaussian.
    """
    error = variance = 0.0
    for x_BLD in torch.split(x_WLD, READ_ROWS):
        back_BLD = interpolated(pooled(x_BLD, config.n_seq), x_BLD.shape[1])
        error += float((back_BLD - x_BLD).square().sum())
        variance += float(x_BLD.square().sum())
    limits = {"generator/pooled_explained_variance": 1 - error / variance}
    data = config.data
    if data.embeddings == SPECTRA:
        assert data.spectrum is not None and data.n_frames is not None
        lost = 1 - recoverable(covariance(data.n_frames, data.spectrum), config.n_seq)
        limits["generator/pooling_bound"] = 1 - (1 - SIGNAL_SHARE) * lost
    return limits


def variance_ratio(model: VAEGenerator, train: Split) -> float:
    """Return the variance of generated rows over that of the training rows, both of T frames.

    It is 1 where samples spread as the rows do, whatever pooling has taken from these.
    """
    n_rows = min(len(train.label_N), MOST_SAMPLED)
    label_B = None if model.n_classes is None else torch.arange(n_rows) % model.n_classes
    if label_B is not None:
        label_B = label_B.to(next(model.parameters()).device)
    n_frames = model.training_sequence_length
    made_BTD = model.sample(n_rows, n_frames, label_B)
    real = pooled(train.x_NLD[:MOST_SAMPLED], n_frames)
    return float(made_BTD.double().var() / real.double().var())


def generation(model: VAEGenerator, n_rows: int, output_length: int) -> dict[str, float]:
    """Measure how a batch is generated: seconds a row, and peak memory with the parameters."""
    device = next(model.parameters()).device
    label_B = None
    if model.n_classes is not None:
        label_B = torch.arange(n_rows, device=device) % model.n_classes
    n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    with machine_lock(), freed_memory_given_back():
        forget_peak_memory(device)
        held = peak_memory_mib(device)
        seconds = []
        for _ in range(ROUNDS):
            wait(device)
            start = time.perf_counter()
            model.sample(n_rows, output_length, label_B)
            wait(device)
            seconds.append(time.perf_counter() - start)
        grown = peak_memory_mib(device) - held
    return {
        "generator/generation_seconds_per_row": statistics.median(seconds) / n_rows,
        "generator/generation_peak_mib": grown + n_bytes / MIB,
    }


def training_peak(
    config: TrialConfig, source: Sequences, device: torch.device
) -> dict[str, float]:
    """Measure the peak of training, above what the process holds: steps of a fresh model."""
    batch = _batch(config, source)
    with machine_lock(), freed_memory_given_back():
        forget_peak_memory(device)
        held = peak_memory_mib(device)
        model = generator_of(config, source).to(device)
        optimizer, blocks = adamw(model, config.optimizer), Blocks(model)
        for _ in range(STEPS):
            x_BLD = torch.randn(batch["batch_size"], batch["n_frames"], source.n_channels)
            label_B = torch.arange(len(x_BLD)) % source.n_classes
            optimizer_step(
                model,
                optimizer,
                [(x_BLD.to(device), label_B.to(device))],
                RowTally(config, config.generator.kl_weight or 0.0),
                clip_norm=config.optimizer.clip_norm,
                autocast=torch.autocast(device.type, torch.bfloat16, enabled=False),
                blocks=blocks,
                guard=Guard(device, None, 0),
            )
        return {"generator/training_peak_mib": peak_memory_mib(device) - held}


def _batch(config: TrialConfig, source: Sequences) -> dict[str, int]:
    plan = config.train
    return {
        "batch_size": plan.batch_size // plan.accumulation,
        "n_frames": source.n_frames if needs_whole_rows(config) else config.n_seq,
    }
