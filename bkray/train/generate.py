"""The task of a sequence generator: rows of embeddings, and what generated ones are worth.

Letters: B rows, L frames, T frames of training, D channels, W validation rows.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bkray.config import TrialConfig
from bkray.data.augmentation import augmented
from bkray.data.of_generator import RowBatches, Split, Standardised
from bkray.data.sequences import Sequences
from bkray.data.vocabulary import Vocabulary
from bkray.errors import ConfigError
from bkray.events import Event, Measured
from bkray.nn.vae import VAEGenerator, interpolated, pooled
from bkray.nn.vae_loss import kl_weight, vae_loss
from bkray.train import checkpoint
from bkray.train.downstream import downstream
from bkray.train.evaluate import Evaluation
from bkray.train.generating import footprint, pooling_limits
from bkray.train.run import Batches, Run
from bkray.train.step import Numbers, Part


class GeneratorTask:
    """Rows of embeddings, trained at one length and generated at another.

    Losses are in nats per value of a row at the training length: the squared error over twice the
    variance of noise and the divergence from the prior, both times ``generator.kl_weight``, which
    is that variance.

    Raises:
        ConfigError: lengths that the data do not have.
    """

    kinds: Sequence[str] = ()
    vocabulary: Vocabulary | None = None
    unigram_nats: float | None = None

    def __init__(self, config: TrialConfig, source: Sequences) -> None:
        knobs = config.generator
        n_frames = source.n_frames
        _check_lengths(config.n_seq, knobs.output_sequence_length, n_frames)
        self.config, self.data = config, Standardised(source)
        self.fingerprint = source.fingerprint
        self.warmup_steps = knobs.kl_warmup_steps or 0
        self.output_length = knobs.output_sequence_length or n_frames
        self.learned = knobs.upsampling == "learned"

    def model(self) -> VAEGenerator:
        model = generator_of(self.config, self.data.source)
        path = self.config.generator.pretrained
        if path is not None:
            state = checkpoint.read_weights(path)
            try:
                model.load_state_dict(state)
            except RuntimeError as error:
                said = str(error).partition("\n")[2].strip() or str(error)
                raise ConfigError(
                    f"generator.pretrained={path} is of a generator with other sizes: {said}"
                ) from None
        return model

    def batches(self) -> Batches:
        """Return training batches: pooled already where nothing needs the whole rows."""
        whole = self.learned or self.config.generator.augmentation != "off"
        rows = self.data.split("train", None if whole else self.config.n_seq)
        return RowBatches(rows, self.config.train.batch_size, self.config.seed)

    def validation(self) -> Part:
        return self.data.split("valid")

    def begin(self, run: Run) -> None:
        """Nothing waits for data."""

    def say(self, model: nn.Module, part: Part) -> Tensor:
        x_BLD, label_B = part
        x_BLD = x_BLD.to(next(model.parameters()).dtype)
        said: Tensor = model(x_BLD, self.labels(label_B), full_length=False).short_BTD
        return said

    def labels(self, label_B: Tensor) -> Tensor | None:
        """Return what the model is told of the classes."""
        return label_B if self.config.generator.conditioned else None

    def tally(self, run: Run, step: int) -> "RowTally":
        weight = self.config.generator.kl_weight or 0.0
        return RowTally(self, kl_weight(step, self.warmup_steps, weight))

    def score(self, run: Run) -> Evaluation:
        """Score the validation rows by the means of their posteriors; one process does it."""
        own = None
        if run.team.leads:
            own = evaluated(self, run.model, Split(*run.validation), run.autocast)
        seen = run.team.gather(own)[0]
        assert seen is not None
        return seen

    def finish(self, run: Run) -> Generator[Event, None, dict[str, float]]:
        knobs, measured = self.config.generator, {}
        measured |= pooling_limits(self, run.validation[0])
        model = run.model
        assert isinstance(model, VAEGenerator)
        model.eval()
        if knobs.conditioned:
            assert knobs.synthetic_per_class is not None
            torch.manual_seed(self.config.seed)
            found = downstream(model, self.data, knobs.synthetic_per_class, self.output_length)
            measured["generator/downstream_accuracy"] = found.synthetic
            measured["generator/downstream_accuracy_real"] = found.real
            measured["generator/downstream_rows_per_class"] = float(found.per_class)
            measured["generator/downstream_rows_tested"] = float(found.n_tested)
        measured |= footprint(self, run)
        model.train()
        yield Measured(step=run.progress.step, metrics=measured)
        return measured

    def columns(self, run: Run, measured: Mapping[str, float]) -> dict[str, Any]:
        seen = run.progress.metrics
        return {
            "explained_variance": seen.get("generator/explained_variance"),
            "kl_nats": seen.get("generator/kl_nats"),
            "downstream_accuracy": measured.get("generator/downstream_accuracy"),
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


@dataclass(slots=True)
class RowTally:
    """Adds up the losses of a step, means over its rows; ``weight`` is that of the divergence."""

    task: GeneratorTask
    weight: float
    numbers: Numbers = field(default_factory=dict)
    load_LE: Tensor | None = None
    count_LE: Tensor | None = None
    n_rows: int = 0
    """Of all parts."""

    def expect(self, parts: Sequence[Part]) -> None:
        self.n_rows = sum(len(label_B) for _, label_B in parts)

    def backward(self, model: nn.Module, part: Part, autocast: torch.autocast) -> None:
        task, knobs = self.task, self.task.config.generator
        x_BLD, label_B = part[0].to(next(model.parameters()).dtype), part[1]
        read_BLD = target_BLD = x_BLD
        if knobs.augmentation is not None and knobs.augmentation != "off":
            draw = _draws_of(x_BLD.device)
            read_BLD, target_BLD = augmented(x_BLD, label_B, knobs.augmentation, draw)
        with autocast:
            said = model(read_BLD, task.labels(label_B), full_length=task.learned)
        if read_BLD is not target_BLD:
            said = said._replace(pooled_BTD=pooled(target_BLD, task.config.n_seq))
        loss = vae_loss(said, self.weight, full_target_BLD=target_BLD if task.learned else None)
        share = len(label_B) / self.n_rows
        per_value = share / said.short_BTD[0].numel()
        told = {
            "loss_nats": loss.total_nats * per_value,
            "reconstruction_nats": loss.reconstruction_nats * per_value,
            "kl_nats": loss.kl_nats * share,
        }
        torch.autograd.backward(told["loss_nats"])
        for name, value in told.items():
            self.numbers[name] = self.numbers.get(name, 0) + value.detach()


@torch.no_grad()
def evaluated(
    task: GeneratorTask, model: nn.Module, rows: Split, autocast: torch.autocast
) -> Evaluation:
    """Return the loss at full weight, and how much of the rows' variance comes back.

    Explained variance is at the full length, of all values of all rows: one less the squared
    error over the squared distance from the training rows' mean.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    weight, n_values = task.config.generator.kl_weight or 0.0, rows.x_NLD[0].numel()
    total_C = torch.zeros(4, dtype=torch.float64)
    for first in range(0, len(rows.label_N), task.config.train.batch_size):
        chosen = slice(first, first + task.config.train.batch_size)
        x_BLD = rows.x_NLD[chosen].to(device, next(model.parameters()).dtype)
        with autocast:
            said = model(x_BLD, task.labels(rows.label_N[chosen].to(device)))
        loss = vae_loss(said, weight, full_target_BLD=x_BLD if task.learned else None)
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


def _check_lengths(training: int, output: int | None, n_frames: int) -> None:
    if training > n_frames:
        raise ConfigError(
            f"generator.training_sequence_length must be at most {n_frames}, the length of the "
            f"data, got {training}: lower it"
        )
    if output is not None and output < training:
        raise ConfigError(
            "generator.output_sequence_length must be at least "
            f"generator.training_sequence_length={training}, got {output}"
        )


def _draws_of(device: torch.device) -> torch.Generator:
    """Return the global generator of a device, whose state a checkpoint holds."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
