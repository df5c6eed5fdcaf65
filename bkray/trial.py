"""One trial: config in, events out. The composition root; it knows no Ray, no MLflow, no sink."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bkray import __version__, overrides
from bkray.config import TrialConfig
from bkray.data.of_trial import batches, validation, windows
from bkray.data.shards import Shards, prepare
from bkray.errors import ConfigError, ResumeError
from bkray.events import Event, Measured, TrialEnded, TrialStarted, Warned
from bkray.nn.build import build
from bkray.nn.routers import calibrated
from bkray.ops.memory import keep_freed_memory
from bkray.rungs import rows_at, rungs
from bkray.train import attempts, checkpoint, measure
from bkray.train.checkpoint import Progress
from bkray.train.evaluate import Evaluation, evaluate
from bkray.train.loop import train
from bkray.train.mismatch import cells
from bkray.train.optim import adamw
from bkray.train.run import Run, Stop, peak_memory_mib
from bkray.train.spectrum import scan_in_float64
from bkray.train.summary import measure_speed, summary
from bkray.train.team import ALONE, Team, check_shares
from bkray.train.watch import Blocks

CALIBRATION_TOKENS = 4096
"""Training tokens whose phases set the bins of a scattering router."""


def never() -> None:
    """Let the trial run to its end."""


def identify(config: TrialConfig) -> tuple[str, str]:
    """Return the trial's id and the fingerprint of its data, which is prepared if need be."""
    shards = prepare(config.data, config.model.n_seq)
    return overrides.trial_id(config, shards.fingerprint, __version__), shards.fingerprint


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
    shards = prepare(config.data, config.model.n_seq)
    attempt = team.gather(attempts.begin(folder) if team.leads else attempts.Attempt())[0]
    trial = compose(config, shards, folder, team, split=attempt.split)
    yield TrialStarted(
        trial_id=trial.trial_id,
        sweep=sweep,
        arm=config.arm,
        seed=config.seed,
        attempt=attempt.number,
        config=overrides.flatten(config),
        n_params=sum(p.numel() for p in trial.model.parameters()),
        causal=bool(getattr(trial.model, "causal", False)),
        data_hash=shards.fingerprint,
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
        yield from cells(trial, shards)
        measured = measure_speed(trial, shards.vocab_size)
        yield Measured(step=trial.progress.step, metrics=measured)
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
    (inputs_WN, _), rung = trial.validation, trial.rung
    n_sites = min(rung.n_seq, trial.config.train.chunk or rung.n_seq)
    n_rows = rung.rows // (trial.split * trial.team.size)
    tokens_BN = inputs_WN[:1, :n_sites].expand(n_rows, -1).to(trial.device)
    trial.model.eval()
    with trial.autocast:
        logits_BNV = trial.model(tokens_BN).logits_BNV
    # Gradients are dropped, not accumulated: a team's model would take them for those of a step.
    learned = [p for p in trial.model.parameters() if p.requires_grad]
    torch.autograd.grad(logits_BNV.float().mean(), learned, allow_unused=True)
    trial.model.train()


def compose(
    config: TrialConfig,
    shards: Shards,
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
    device, autocast = _device(config), _autocast(config)
    torch.manual_seed(config.seed)
    model = build(config, shards.vocab_size)
    model.to(device, torch.float64 if config.train.precision == "float64" else None)
    optimizer = adamw(model, config.optimizer, config.model.halt_lr_factor or 1.0)
    trial = Run(
        config=config,
        trial_id=overrides.trial_id(config, shards.fingerprint, __version__),
        team=team,
        model=model,
        trained=model,
        blocks=Blocks(model),
        optimizer=optimizer,
        batches=batches(config, shards),
        rungs=rungs(config),
        validation=validation(config, shards),
        kinds=shards.kinds,
        vocabulary=shards.vocabulary,
        unigram_nats=shards.unigram_entropy_nats,
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
    if trial.progress.step == 0 and config.model.router == "scattering":
        _set_bins(trial, shards)
    plainly_dense = config.model.build is None and config.model.depth == "dense"
    trial.trained = team.synchronised(model, may_skip=not plainly_dense)
    return trial


def open_checkpoint(folder: Path) -> tuple[Run, Shards]:
    """Return the trial of a folder as its checkpoint left it, and its corpus.

    Raises:
        ResumeError: the folder holds no trial or no checkpoint.
        DataError: the corpus is gone.
    """
    description = folder / "config.json"
    if not description.exists():
        raise ResumeError(f"{folder} holds no trial: config.json is missing")
    config = overrides.build(json.loads(description.read_text())["config"])
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
        kinds=trial.kinds,
        chunk=config.train.chunk,
    )
    return trial.progress.step, score


def _set_bins(trial: Run, shards: Shards) -> None:
    """Let scattering routers share training tokens evenly; the same ones in every process."""
    n_seq = min(trial.config.model.n_seq, CALIBRATION_TOKENS)
    inputs_WN, _ = windows(shards, "train", n_seq, CALIBRATION_TOKENS // n_seq)
    trial.model.eval()
    with torch.no_grad(), trial.autocast, calibrated(trial.model):
        trial.model(inputs_WN.to(trial.device))
    trial.model.train()


def _device(config: TrialConfig) -> torch.device:
    name = config.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda, but torch sees no GPU here: use auto or cpu")
    if name == "cpu" and config.train.precision == "bf16":
        raise ConfigError("train.precision=bf16 needs a GPU: use float32 on a CPU")
    return torch.device(name)


def _autocast(config: TrialConfig) -> torch.autocast:
    enabled = config.train.precision == "bf16"
    return torch.autocast("cuda" if enabled else "cpu", torch.bfloat16, enabled=enabled)
