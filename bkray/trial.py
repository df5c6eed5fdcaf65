"""One trial: config in, events out. The composition root; it knows no Ray, no MLflow, no sink."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bkray import __version__, overrides
from bkray.config import TrialConfig
from bkray.data.of_generator import sequences
from bkray.data.of_trial import windows
from bkray.data.sequences import Sequences
from bkray.data.shards import Shards, prepare
from bkray.errors import ConfigError, ResumeError
from bkray.events import Event, TrialEnded, TrialStarted, Warned
from bkray.ops.memory import keep_freed_memory
from bkray.rungs import rows_at, rungs
from bkray.train import attempts, checkpoint, measure
from bkray.train.checkpoint import Progress
from bkray.train.evaluate import Evaluation, evaluate
from bkray.train.generate import GeneratorTask, check_classes, check_lengths
from bkray.train.generating import check_room
from bkray.train.hardware import autocast_of, device_of
from bkray.train.language import LanguageTask
from bkray.train.loop import train
from bkray.train.optim import adamw
from bkray.train.run import Run, Stop, Task, peak_memory_mib
from bkray.train.spectrum import scan_in_float64
from bkray.train.summary import summary
from bkray.train.team import ALONE, Team, check_shares
from bkray.train.watch import Blocks

Data = Shards | Sequences
"""What a language model trains on, and what a generator does."""


def never() -> None:
    """Let the trial run to its end."""


def identify(config: TrialConfig) -> tuple[str, str]:
    """Return the trial's id and the fingerprint of its data, which is prepared if need be."""
    fingerprint = prepared(config).fingerprint
    return overrides.trial_id(config, fingerprint, __version__), fingerprint


def prepared(config: TrialConfig) -> Data:
    """Return the data of a trial: tokens of its corpus, or its embeddings.

    Raises:
        DataError: there is no such text or file, or too little of it.
        ConfigError: a generator has other lengths than its data, or does not fit into memory.
    """
    if config.generator.acts:
        source = sequences(config.data)
        check_lengths(config, source.n_frames)
        check_classes(config, source)
        check_room(config, source)
        return source
    return prepare(config.data, config.model.n_seq)


def run(
    config: TrialConfig,
    folder: Path | None,
    *,
    sweep: str = "",
    stop: Stop = never,
    team: Team = ALONE,
) -> Iterator[Event]:
    """Train, evaluate and measure one trial, from its checkpoint where ``folder`` has one.

    Args:
        folder: where ``checkpoints/`` lies; ``None`` keeps no checkpoint.
        stop: asked after every window of at most 16 steps; its answer becomes the outcome.
        team: the processes that train this trial together, each of which calls this. The events
            are alike in all of them; those of the leading one count. Each is asked to stop, and
            the answer of the lowest rank ends them all.

    Raises:
        ConfigError, DataError: the model or the text cannot be had as configured.
        ResumeError: the checkpoint in ``folder`` belongs to another trial.
    """
    use_threads(config.threads)
    keep_freed_memory()
    data = prepared(config)
    attempt = team.gather(attempts.begin(folder) if team.leads else attempts.Attempt())[0]
    trial = compose(config, data, folder, team, split=attempt.split)
    yield TrialStarted(
        trial_id=trial.trial_id,
        sweep=sweep,
        arm=config.arm,
        seed=config.seed,
        attempt=attempt.number,
        config=overrides.flatten(config),
        n_params=sum(p.numel() for p in trial.model.parameters()),
        causal=bool(getattr(trial.model, "causal", False)),
        data_hash=data.fingerprint,
        step=trial.progress.step,
        split=attempt.split,
    )
    if folder is not None and trial.warnings and team.leads:
        checkpoint.set_damaged_aside(folder / checkpoint.FOLDER)
    yield from (Warned(step=trial.progress.step, message=said) for said in trial.warnings)
    warm_up(trial)
    measure.forget_peak_memory(trial.device)
    ending = yield from train(trial, stop)
    peak_mib = peak_memory_mib(trial)  # before the measurement adds its own
    measured: dict[str, float] = {}
    if ending.outcome == "ok" and team.leads:
        measured = yield from trial.task.finish(trial)
    yield TrialEnded(
        step=trial.progress.step,
        outcome=ending.outcome,
        reason=ending.reason,
        summary=summary(trial, measured, peak_mib),
    )


def use_threads(n_threads: int) -> None:
    """Give torch, and the scan with it, so many threads; child processes inherit the number."""
    torch.set_num_threads(n_threads)
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(n_threads)


def warm_up(trial: Run) -> None:
    """Compile what the model needs, so that no clock counts it; draws no random number."""
    rung = trial.rung
    n_sites = min(rung.n_seq, trial.config.train.chunk or rung.n_seq)
    n_rows = rung.rows // (trial.split * trial.team.size)
    inputs, targets = (
        side[:1].expand(n_rows, *side.shape[1:]).to(trial.device) for side in trial.validation
    )
    trial.model.eval()
    with trial.autocast:
        said = trial.task.say(trial.model, (inputs[:, :n_sites], targets))
    # Gradients are dropped, not accumulated: a team's model would take them for those of a step.
    learned = [p for p in trial.model.parameters() if p.requires_grad]
    torch.autograd.grad(said.float().mean(), learned, allow_unused=True)
    trial.model.train()


def compose(
    config: TrialConfig,
    data: Data,
    folder: Path | None,
    team: Team = ALONE,
    *,
    split: int = 1,
) -> Run:
    """Return the trial, built from its seed or put back from the checkpoint in ``folder``.

    Raises:
        ConfigError: the batch cannot be shared evenly by the team.
    """
    check_shares(config.train, team.size * split)
    device, autocast = device_of(config), autocast_of(config)
    task: Task
    if isinstance(data, Sequences):
        task = GeneratorTask(config, data)
    else:
        task = LanguageTask(config, data)
    torch.manual_seed(config.seed)
    model = task.model()
    model.to(device, torch.float64 if config.train.precision == "float64" else None)
    optimizer = adamw(model, config.optimizer, config.model.halt_lr_factor or 1.0)
    trial = Run(
        config=config,
        trial_id=overrides.trial_id(config, data.fingerprint, __version__),
        team=team,
        model=model,
        trained=model,
        blocks=Blocks(model),
        optimizer=optimizer,
        task=task,
        batches=task.batches(),
        rungs=rungs(config),
        validation=task.validation(),
        device=device,
        autocast=autocast,
        folder=folder,
        split=split,
        progress=Progress(),
        load_LE=None,
    )
    if not team.leads:  # dropout must not drop the same units in every process
        torch.manual_seed(
            int(np.random.SeedSequence([config.seed, team.rank]).generate_state(1)[0])
        )
    if folder is not None:
        saved, warning = checkpoint.load(folder / checkpoint.FOLDER, trial.trial_id)
        trial.warnings += [warning] if warning else []
        if saved is not None:
            trial.progress, trial.load_LE = checkpoint.restore(saved, model, optimizer, team.rank)
            trial.batches.restore(saved["batches"])
            scan_in_float64(model, trial.progress.precise_mixers)
    if trial.progress.step == 0:
        task.begin(trial)
    plainly_dense = config.model.build is None and config.model.depth == "dense"
    trial.trained = team.synchronised(model, may_skip=not plainly_dense)
    return trial


def open_checkpoint(folder: Path) -> tuple[Run, Shards]:
    """Return the trial of a folder as its checkpoint left it, and its corpus.

    Raises:
        ResumeError: the folder holds no trial or no checkpoint.
        DataError: the corpus is gone.
        ConfigError: it is a generator, of which no text can be asked.
    """
    description = folder / "config.json"
    if not description.exists():
        raise ResumeError(f"{folder} holds no trial: config.json is missing")
    config = overrides.build(json.loads(description.read_text())["config"])
    if config.generator.acts:
        raise ConfigError(
            f"{folder} holds a sequence generator, which reads no text: give the folder of a "
            "language model"
        )
    use_threads(config.threads)
    shards = prepare(config.data, config.model.n_seq)
    trial = compose(config, shards, folder)
    if trial.progress.step == 0:
        missing = f"{folder} has no checkpoint yet: {checkpoint.NAME} is missing"
        damage = trial.warnings[0].removesuffix(checkpoint.ANEW) if trial.warnings else ""
        raise ResumeError(damage or missing)
    return trial, shards


def evaluate_checkpoint(folder: Path, split: str) -> tuple[int, Evaluation]:
    """Return step and score of a trial's checkpoint on every window of ``split``.

    ``split`` is ``valid`` or ``test``; windows are ``model.n_seq`` tokens long and do not overlap.

    Raises:
        ResumeError: the folder holds no trial or no checkpoint.
        DataError: the corpus is gone or has no such split.
    """
    trial, shards = open_checkpoint(folder)
    config, n_seq = trial.config, trial.config.model.n_seq
    score = evaluate(
        trial.model,
        *windows(shards, split, n_seq, max(1, (len(shards.tokens(split)) - 1) // n_seq)),
        batch_size=rows_at(config, n_seq)[1],
        autocast=trial.autocast,
        kinds=trial.task.kinds,
        chunk=config.train.chunk,
    )
    return trial.progress.step, score
