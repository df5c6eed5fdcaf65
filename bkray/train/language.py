"""The task of a language model: text, next tokens, and what is measured of a trained one."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bkray.config import TrialConfig
from bkray.data import of_trial
from bkray.data.of_trial import windows
from bkray.data.shards import Shards
from bkray.data.vocabulary import Vocabulary
from bkray.events import Event, Measured
from bkray.nn.build import build
from bkray.nn.routers import calibrated
from bkray.train.evaluate import Evaluation, evaluate
from bkray.train.mismatch import cells
from bkray.train.run import Batches, Run, validation_at
from bkray.train.step import Part, TokenTally
from bkray.train.summary import columns, measure_speed

CALIBRATION_TOKENS = 4096
"""Training tokens whose phases set the bins of a scattering router."""


class LanguageTask:
    """Next tokens of a corpus."""

    warmup_steps = 0
    kinds: Sequence[str]
    vocabulary: Vocabulary | None
    unigram_nats: float | None

    def __init__(self, config: TrialConfig, shards: Shards) -> None:
        self._config, self._shards = config, shards
        self.fingerprint = shards.fingerprint
        self.kinds = shards.kinds
        self.vocabulary = shards.vocabulary
        self.unigram_nats = shards.unigram_entropy_nats

    def model(self) -> nn.Module:
        return build(self._config, self._shards.vocab_size)

    def batches(self) -> Batches:
        return of_trial.batches(self._config, self._shards)

    def validation(self) -> Part:
        return of_trial.validation(self._config, self._shards)

    def begin(self, run: Run) -> None:
        """Let scattering routers share training tokens evenly; the same ones in every process."""
        if self._config.model.router != "scattering":
            return
        n_seq = min(self._config.model.n_seq, CALIBRATION_TOKENS)
        inputs_WN, _ = windows(self._shards, "train", n_seq, CALIBRATION_TOKENS // n_seq)
        run.model.eval()
        with torch.no_grad(), run.autocast, calibrated(run.model):
            run.model(inputs_WN.to(run.device))
        run.model.train()

    def say(self, model: nn.Module, part: Part) -> Tensor:
        logits_BNV: Tensor = model(part[0]).logits_BNV
        return logits_BNV

    def tally(self, run: Run, step: int) -> TokenTally:
        return TokenTally(self._config.model, run.load_LE, self._config.train.chunk)

    def score(self, run: Run) -> Evaluation:
        rows = validation_at(run)
        return evaluate(
            run.model,
            rows.inputs_WN,
            rows.targets_WN,
            batch_size=rows.rows,
            autocast=run.autocast,
            kinds=rows.kinds,
            chunk=self._config.train.chunk,
            team=run.team,
        )

    def settle(self, run: Run) -> None:
        """A language model is complete as it was trained."""

    def finish(self, run: Run) -> Generator[Event, None, dict[str, float]]:
        yield from cells(run, self._shards)
        measured = measure_speed(run, self._shards.vocab_size)
        yield Measured(step=run.progress.step, metrics=measured)
        return measured

    def columns(self, run: Run, measured: Mapping[str, float]) -> dict[str, Any]:
        return columns(run, measured)
