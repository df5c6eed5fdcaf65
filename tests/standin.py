"""A trial that trains nothing: its loss follows from its config, which can also make it fail.

Like a real one it counts its attempts, keeps a checkpoint, and goes on from there.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bkray.atomic import write_json
from bkray.cluster.carriers import Parts
from bkray.cluster.tuner import SweepOptions, SweepOutcome, run_sweep
from bkray.config import TrialConfig
from bkray.events import EvalDone, Event, StepsDone, TrialEnded, TrialStarted
from bkray.overrides import flatten, trial_id
from bkray.sinks.parquet import ParquetSink
from bkray.sinks.sink import SweepView
from bkray.sweep import Objective, Preset, Sweep, Trial
from bkray.train import attempts
from bkray.train.run import Stop
from bkray.train.team import ALONE, Team

FAILS, DIVERGES, OUT_OF_MEMORY, DIES = 0.11, 0.22, 0.33, 0.44
"""Values of ``model.dropout`` that make the stand-in end badly."""
DIVERGES_ONCE, UNLUCKY_SEED = 0.23, 1
"""The value of ``model.dropout`` with which one seed diverges."""
FAILS_ONCE, NEEDS_LESS, FAILS_ANEW = 0.12, 0.34, 0.13
"""Those with which the first attempt fails, with which whole micro-batches need too much memory,
and with which every attempt fails in another way."""


def identify(config: TrialConfig) -> tuple[str, str]:
    return trial_id(config, "data", "0"), "data"


def run(
    config: TrialConfig, folder: Path, *, sweep: str, stop: Stop, team: Team = ALONE
) -> Iterator[Event]:
    dropout = config.model.dropout or 0.0
    attempt = attempts.begin(folder) if team.leads else attempts.Attempt()
    if dropout == OUT_OF_MEMORY or (dropout == NEEDS_LESS and attempt.split == 1):
        raise MemoryError("Unable to allocate 10.0 TiB for an array")
    saved = folder / "checkpoint.json"
    step = json.loads(saved.read_text()) if saved.exists() else 0
    yield TrialStarted(
        trial_id=identify(config)[0],
        sweep=sweep,
        arm=config.arm,
        seed=config.seed,
        attempt=attempt.number,
        config=flatten(config),
        n_params=1,
        causal=True,
        data_hash="data",
        step=step,
        split=attempt.split,
    )
    per_step = config.train.batch_size * config.model.n_seq
    best = loss_of(config) + 1 / step if step else math.inf
    outcome, reason = (step and stop()) or ("ok", "")
    while step < config.train.steps and outcome == "ok":
        step += 10
        _break(dropout, step, attempt.number)
        unlucky = dropout == DIVERGES_ONCE and config.seed == UNLUCKY_SEED
        loss = math.nan if dropout == DIVERGES or unlucky else loss_of(config) + 1 / step
        yield StepsDone(
            step=step,
            tokens=step * per_step,
            loss_nats=(loss,) * 10,
            grad_norm=(1.0,) * 10,
            lr=0.1,
            window_seconds=0.001,
        )
        if math.isnan(loss):
            outcome, reason = "diverged", f"loss is nan at step {step}"
        elif step % config.train.eval_every == 0:
            best = min(best, loss)
            yield EvalDone(step=step, tokens=step * per_step, split="val", loss_nats=loss)
        if outcome == "ok":
            if team.leads:
                write_json(saved, step)
            outcome, reason = stop() or ("ok", "")
    summary = {
        "best_val_loss_nats": best if math.isfinite(best) else None,
        "speedup_measured": 1.0 + dropout if outcome == "ok" else None,
    }
    yield TrialEnded(step=step, outcome=outcome, reason=reason, summary=summary)


def _break(dropout: float, step: int, attempt: int) -> None:
    if step > 10 and (dropout == FAILS or (dropout == FAILS_ONCE and attempt == 1)):
        raise RuntimeError("the stand-in broke\nas it was told to")
    if step > 10 and dropout == FAILS_ANEW:
        raise RuntimeError(f"the stand-in broke for the {attempt}. time")
    if step > 10 and dropout == DIES:
        os._exit(1)


def loss_of(config: TrialConfig) -> float:
    """A bowl over dropout and log10 of the learning rate; arms and later seeds are worse."""
    bowl = (math.log10(config.optimizer.lr) + 2.5) ** 2 + (config.model.dropout or 0.0)
    return 1.0 + bowl + (0.5 if config.arm else 0.0) + 0.1 * config.seed


PARTS = Parts(run, ParquetSink)


def suggest(trial: Trial) -> dict[str, object]:
    trial.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
    trial.suggest_float("model.dropout", 0.0, 0.5)
    return {}


LOSS = Objective(column="best_val_loss_nats", direction="minimize")
SPEED = Objective(column="speedup_measured", direction="maximize")


def point(dropout: float, lr: float = 10**-2.5) -> dict[str, object]:
    return {"model.dropout": dropout, "optimizer.lr": lr}


def sweep_of(*first: dict[str, object], n_trials: int, **changes: object) -> Sweep:
    """A sweep over the stand-in with the preset ``p``; ``first`` are its first points."""
    given: dict[str, object] = {
        "name": "t",
        "space": suggest,
        "objectives": (LOSS,),
        "base": {"train.steps": 40, "train.eval_every": 10},
        "presets": {"p": Preset(trials=n_trials)},
        "sampler": "qmc",
        "first": first,
    }
    return Sweep(**(given | changes))  # type: ignore[arg-type]


def carry(
    sweep: Sweep, out: Path, *views: SweepView, resume: bool = False, **options: Any
) -> SweepOutcome:
    """Run a sweep of the stand-in, unpruned unless a scheduler is given."""
    chosen = SweepOptions(**({"out": out, "preset": "p", "scheduler": "none"} | options))
    return run_sweep(sweep, chosen, views, resume=resume, parts=PARTS, identify=identify)


def outcomes_in(out: Path) -> Sequence[tuple[str, str]]:
    """Return outcome and reason of the trials in a sweep's folder, in their order."""
    folders = [path.parent for path in out.glob("trials/*/outcome.json")]
    folders.sort(key=lambda folder: json.loads((folder / "proposal.json").read_text())["number"])
    said = [json.loads((folder / "outcome.json").read_text()) for folder in folders]
    return [(outcome["outcome"], outcome["stop_reason"]) for outcome in said]
