"""A running trial: all that it holds, and how it takes one step."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bkray.config import TrialConfig
from bkray.data.of_trial import cut
from bkray.data.vocabulary import Vocabulary
from bkray.events import Event
from bkray.rungs import Rung, rung_at
from bkray.train import checkpoint, measure
from bkray.train.checkpoint import Progress, State
from bkray.train.evaluate import Evaluation
from bkray.train.forensics import Memory
from bkray.train.guard import Guard
from bkray.train.optim import lr_factor, set_lr
from bkray.train.step import Part, Step, Tally, optimizer_step
from bkray.train.team import Team
from bkray.train.watch import Blocks


class Ending(NamedTuple):
    """Why a trial is over: one of ``bkray.events.OUTCOMES`` and a sentence."""

    outcome: str
    reason: str = ""


Stop = Callable[[], tuple[str, str] | None]
"""Asked after every window; an answer, outcome and reason, ends the trial."""


class Batches(Protocol):
    """Endless training batches; the k-th depends on config, data and k alone."""

    last_taken: tuple[dict[str, int], tuple[int, ...]]
    """Of the latest batch: ``state`` before it, and where in the data each of its rows begins."""

    def __next__(self) -> Part: ...

    def state(self) -> dict[str, int]:
        """Return the place in the data, for ``restore`` of equal batches."""

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on where ``state`` was taken."""


class Task(Protocol):
    """What a trial trains, on which data, how it is scored and what is measured of it.

    There are two: a language model on text, and a sequence generator on embeddings.
    """

    fingerprint: str
    """Of the data."""
    kinds: Sequence[str]
    """Of the validation rows, in turn; empty where they are all of one."""
    vocabulary: Vocabulary | None
    unigram_nats: float | None
    """Loss of a model that has learnt the frequencies of tokens alone, where there are tokens."""
    warmup_steps: int
    """First steps, in which the loss grows a term and is not yet comparable with later ones."""

    def model(self) -> nn.Module:
        """Return the model, freshly initialised from torch's global generator."""

    def batches(self) -> Batches: ...

    def validation(self) -> Part:
        """Return the rows that are scored, the same ones for every trial."""

    def begin(self, run: "Run") -> None:
        """Set up what needs data, before the first step."""

    def say(self, model: nn.Module, part: Part) -> Tensor:
        """Return what a model makes of rows, whatever shape that has."""

    def tally(self, run: "Run", step: int) -> Tally: ...

    def score(self, run: "Run") -> Evaluation:
        """Score the validation rows."""

    def settle(self, run: "Run") -> None:
        """Set up what needs a trained model, before the last checkpoint is written."""

    def finish(self, run: "Run") -> Generator[Event, None, dict[str, float]]:
        """Measure a model that is trained; return numbers under their full names."""

    def columns(self, run: "Run", measured: Mapping[str, float]) -> dict[str, Any]:
        """Return the columns of ``trials.parquet`` that only such trials have."""


@dataclass(slots=True, kw_only=True)
class Run:
    """All that a running trial holds; complete once built."""

    config: TrialConfig
    trial_id: str
    team: Team
    model: nn.Module
    trained: nn.Module
    """The model, so that its gradients are averaged over the team."""
    blocks: Blocks
    optimizer: torch.optim.Optimizer
    task: Task
    batches: Batches
    rungs: tuple[Rung, ...]
    validation: Part
    device: torch.device
    autocast: torch.autocast
    folder: Path | None
    split: int
    """Parts that each micro-batch of the config is cut into."""
    progress: Progress
    load_LE: Tensor | None
    memory: Memory = field(default_factory=Memory)
    warnings: list[str] = field(default_factory=list)

    @property
    def rung(self) -> Rung:
        """Where the next step belongs to."""
        return rung_at(self.rungs, self.progress.step + 1)

    @property
    def interventions_left(self) -> int:
        """Spikes that ``train.on_spike`` may still answer."""
        return (self.config.train.max_interventions or 0) - self.progress.interventions

    def state(self) -> State:
        """Return what the next step depends on, as a checkpoint holds it: not copied, and with
        this process's random numbers alone."""
        return checkpoint.state_of(
            trial_id=self.trial_id,
            model=self.model,
            optimizer=self.optimizer,
            batches_state=self.batches.state(),
            progress=self.progress,
            load_LE=self.load_LE,
            rng=[checkpoint.rng_state()],
        )


def take_step(run: Run, step: int, guard: Guard) -> tuple[Step, float]:
    """Train on the next batch; return what was said and the learning rate."""
    lr = run.config.optimizer.lr * lr_factor(step, run.config.train.steps, run.config.optimizer)
    set_lr(run.optimizer, lr)
    said = optimizer_step(
        run.trained,
        run.optimizer,
        _parts(run, step),
        run.task.tally(run, step),
        clip_norm=run.config.optimizer.clip_norm,
        autocast=run.autocast,
        blocks=run.blocks,
        guard=guard,
        team=run.team,
    )
    run.load_LE = said.load_LE
    return said, lr


class Windows(NamedTuple):
    """What is scored at a step, ``rows`` windows at a time."""

    inputs_WN: Tensor
    targets_WN: Tensor
    rows: int
    kinds: Sequence[str]
    """Of the windows, in turn: one name for each of those that a stretch is cut into."""


def validation_at(run: Run, step: int | None = None) -> Windows:
    """Return the validation windows at the length of ``step``, by default of the last one: the
    same tokens at every length."""
    config = run.config
    n_seq, rows = config.model.n_seq, config.train.batch_size
    if config.ladder.rungs:
        rung = rung_at(run.rungs, run.progress.step if step is None else step)
        n_seq, rows = rung.n_seq, rung.rows
    per_stretch = -(-(config.train.eval_stretch or config.model.n_seq) // n_seq)
    kinds = [kind for kind in run.task.kinds for _ in range(per_stretch)]
    return Windows(*cut(run.validation, n_seq), rows, kinds)


def next_guard(run: Run) -> Guard:
    """Return what watches over the steps that come next."""
    skips = run.config.train.on_spike == "skip_step"
    left = max(0, run.interventions_left) if skips else 0
    return Guard(run.device, run.progress.health.last_loss_nats, left)


def peak_memory_mib(run: Run) -> float:
    """Return the most that any process of the team held."""
    return max(run.team.gather(measure.peak_memory_mib(run.device)))


def _parts(run: Run, step: int) -> list[Part]:
    rows = rung_at(run.rungs, step).rows // run.split
    pairs = zip(*(torch.split(side, rows) for side in next(run.batches)), strict=True)
    own = run.team.share(rows)
    return [
        (_sent(inputs[own], run.device), _sent(targets[own], run.device))
        for inputs, targets in pairs
    ]


def _sent(tokens_BN: Tensor, device: torch.device) -> Tensor:
    """Return the tokens on the device, from pinned memory and without waiting for a GPU.

    So the host is ahead of it within a window, and the next batch is there before it is needed.
    """
    if device.type == "cuda":
        return tokens_BN.pin_memory().to(device, non_blocking=True)
    return tokens_BN.to(device)
