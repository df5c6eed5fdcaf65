"""The task of a sequence generator: rows of embeddings, and what generated ones are worth.

Letters: B rows, L frames, T frames of training, D channels, W validation rows.
"""

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bkray.config import TrialConfig
from bkray.data.of_generator import RowBatches, Split, standard_splits, standardised
from bkray.data.sequences import Sequences
from bkray.data.vocabulary import Vocabulary
from bkray.errors import ConfigError, ResumeError
from bkray.events import Event, Measured
from bkray.nn.vae import VAEGenerator
from bkray.nn.vae_loss import kl_weight
from bkray.train import checkpoint
from bkray.train.downstream import downstream
from bkray.train.evaluate import Evaluation
from bkray.train.generating import (
    estimates,
    generation,
    generator_of,
    needs_whole_rows,
    pooling_limits,
    training_peak,
    variance_ratio,
)
from bkray.train.row_losses import RowTally, evaluated, told
from bkray.train.run import Batches, Run
from bkray.train.step import Part


class GeneratorTask:
    """Rows of embeddings, trained at one length and generated at another.

    Losses are in nats per value of a row at the training length: the squared error over twice the
    variance of noise and the divergence from the prior, both times ``generator.kl_weight``, which
    is that variance.
    """

    kinds: Sequence[str] = ()
    vocabulary: Vocabulary | None = None
    unigram_nats: float | None = None

    def __init__(self, config: TrialConfig, source: Sequences) -> None:
        knobs = config.generator
        self.config, self.data = config, standardised(config.data, source)
        self.fingerprint = source.fingerprint
        self.warmup_steps = knobs.kl_warmup_steps or 0
        self.output_length = knobs.output_sequence_length or source.n_frames

    def model(self) -> VAEGenerator:
        return generator_of(self.config, self.data.source)

    def batches(self) -> Batches:
        """Return training batches: pooled already where nothing needs the whole rows."""
        n_pooled = None if needs_whole_rows(self.config) else self.config.n_seq
        self._train = self.data.split("train", n_pooled)
        return RowBatches(self._train, self.config.train.batch_size, self.config.seed)

    def validation(self) -> Part:
        return self.data.split("valid")

    def begin(self, run: Run) -> None:
        """Take the weights of ``generator.pretrained``; a trial that goes on needs it no more."""
        path = self.config.generator.pretrained
        if path is not None:
            load_pretrained(run.model, path)
            if self.config.generator.prior == "standard":
                assert isinstance(run.model, VAEGenerator)
                run.model.prior.forget()

    def say(self, model: nn.Module, part: Part) -> Tensor:
        x_BLD, label_B = part
        x_BLD = x_BLD.to(next(model.parameters()).dtype)
        said: Tensor = model(x_BLD, told(self.config, label_B), full_length=False).short_BTD
        return said

    def tally(self, run: Run, step: int) -> RowTally:
        weight = self.config.generator.kl_weight or 0.0
        return RowTally(self.config, kl_weight(step, self.warmup_steps, weight))

    def score(self, run: Run) -> Evaluation:
        """Score the validation rows by the means of their posteriors; one process does it."""
        own = None
        if run.team.leads:
            own = evaluated(self.config, run.model, Split(*run.validation), run.autocast)
        seen = run.team.gather(own)[0]
        assert seen is not None
        return seen

    def settle(self, run: Run) -> None:
        """Fit what samples are drawn from to what the encoder writes of the training rows."""
        if self.config.generator.prior == "fitted":
            assert isinstance(run.model, VAEGenerator)
            run.model.fit_prior(self._train.x_NLD, told(self.config, self._train.label_N))

    def finish(self, run: Run) -> Generator[Event, None, dict[str, float]]:
        knobs, model, source = self.config.generator, run.model, self.data.source
        measured = pooling_limits(self.config, run.validation[0])
        measured |= estimates(self.config, source, self.output_length)
        assert isinstance(model, VAEGenerator)
        model.eval()
        torch.manual_seed(self.config.seed)
        measured["generator/sample_variance_ratio"] = variance_ratio(model, self._train)
        if knobs.conditioned:
            assert knobs.synthetic_per_class is not None
            found = downstream(model, self.data, knobs.synthetic_per_class, self.output_length)
            measured["generator/downstream_accuracy"] = found.synthetic
            measured["generator/downstream_accuracy_real"] = found.real
            measured["generator/downstream_accuracy_pooled"] = found.pooled
            measured["generator/downstream_rows_per_class"] = float(found.per_class)
            measured["generator/downstream_rows_tested"] = float(found.n_tested)
        n_rows = self.config.train.batch_size // self.config.train.accumulation
        measured |= generation(model, n_rows, self.output_length)
        measured |= training_peak(self.config, source, run.device)
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


def load_pretrained(model: nn.Module, path: str) -> None:
    """Load the weights of a checkpoint.

    Raises:
        ConfigError: there is none at ``path``, or it is of a generator with other sizes.
    """
    try:
        state = checkpoint.read(Path(path).expanduser())["model"]
    except (ResumeError, KeyError) as error:
        raise ConfigError(f"generator.pretrained={path} is no checkpoint: {error}") from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        said = str(error).partition("\n")[2].strip() or str(error)
        raise ConfigError(
            f"generator.pretrained={path} is of a generator with other sizes: {said}"
        ) from None


def check_classes(config: TrialConfig, source: Sequences) -> None:
    """Refuse more generated rows of a class than there are real ones to compare them with.

    Raises:
        ConfigError: a class has fewer training rows than ``generator.synthetic_per_class``.
    """
    wanted = config.generator.synthetic_per_class
    if wanted is None:
        return
    label_N = source.label_N[standard_splits(source)["train"]]
    least = int(np.bincount(label_N).min())
    if wanted > least:
        raise ConfigError(
            f"generator.synthetic_per_class={wanted} is above {least}, the training rows of the "
            f"smallest class, which as many are compared with: set it to {least} or less"
        )


def check_lengths(config: TrialConfig, n_frames: int) -> None:
    """Refuse lengths that the data do not have.

    Raises:
        ConfigError: more frames to train at than there are, or fewer to generate than to train at.
    """
    training, output = config.n_seq, config.generator.output_sequence_length
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
    if config.generator.upsampling == "learned" and training == (output or n_frames):
        raise ConfigError(
            f"generator.upsampling=learned does nothing with a training length of {training}, "
            "which is the length that is generated: use linear, or lower "
            "generator.training_sequence_length"
        )
