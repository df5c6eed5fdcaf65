"""A running trial: all that it holds, and how it takes one step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.config import TrialConfig
from bkray.data.batches import Batches
from bkray.data.climb import Climb
from bkray.data.of_trial import cut
from bkray.data.vocabulary import Vocabulary
from bkray.rungs import Rung, rung_at
from bkray.train import checkpoint, measure
from bkray.train.checkpoint import Progress, State
from bkray.train.forensics import Memory
from bkray.train.guard import Guard
from bkray.train.optim import lr_factor, set_lr
from bkray.train.step import Part, Step, optimizer_step
from bkray.train.team import Team
from bkray.train.watch import Blocks


class Ending(NamedTuple):
    """Why a trial is over: one of ``bkray.events.OUTCOMES`` and a sentence."""

    outcome: str
    reason: str = ""


Stop = Callable[[], tuple[str, str] | None]
"""Asked after every window; an answer, outcome and reason, ends the trial."""


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
    batches: Batches | Climb
    rungs: tuple[Rung, ...]
    validation: Part
    kinds: Sequence[str]
    """Of the validation windows, in turn; empty where they are all of one."""
    vocabulary: Vocabulary
    unigram_nats: float
    """Entropy of the training tokens: where a model is that has learnt their frequencies alone."""
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
        run.config.model,
        load_LE=run.load_LE,
        clip_norm=run.config.optimizer.clip_norm,
        autocast=run.autocast,
        blocks=run.blocks,
        guard=guard,
        chunk=run.config.train.chunk,
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
    kinds = [kind for kind in run.kinds for _ in range(per_stretch)]
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
    inputs_BN, targets_BN = next(run.batches)
    rows = rung_at(run.rungs, step).rows // run.split
    pairs = zip(torch.split(inputs_BN, rows), torch.split(targets_BN, rows), strict=True)
    own = run.team.share(rows)
    return [(inputs[own].to(run.device), targets[own].to(run.device)) for inputs, targets in pairs]
