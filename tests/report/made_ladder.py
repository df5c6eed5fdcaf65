"""Folders of ladders that nobody climbed: rungs with given numbers, written as a sweep does.

Tokens per second go as length^-0.1, memory has 1 KiB per token, the loss goes as length^-0.05.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from made_sweep import LOSS, write_record

from bkray.events import RungDone, StepsDone, TrialEnded, TrialStarted
from bkray.sinks.parquet import ParquetSink

LENGTHS = (128, 512, 2048, 8192, 32768)


def loss_at(n_seq: int) -> float:
    return float(6 * n_seq**-0.05)


def write_ladder(folder: Path, **base: Any) -> Path:
    """Write the record of a ladder without trials."""
    given = {"ladder.lengths": ",".join(map(str, LENGTHS)), "data.corpus": "made_up.txt", **base}
    return write_record(folder, swept=(), objectives=(LOSS,), name="ladder", arms=[], base=given)


def rung(n_seq: int, *, step: int = 100, loss: float | None = None, **metrics: float) -> RungDone:
    """A rung that ended as ok; with ``loss`` above 100 one that diverged."""
    loss = loss_at(n_seq) if loss is None else loss
    diverged = loss > 100
    numbers = {
        "spike_count": 0.0,
        "nan_count": 0.0,
        "tokens_per_second": 1e4 * n_seq**-0.1,
        "memory_gb": 0.5 + n_seq / 2**20,
        "learning_rate": 1e-4,
        "steps": 100.0,
        "train_seconds": 2.0,
        "gradient_norm": 2.0,
        "gradient_norm_std": 0.25,
    }
    if not diverged:
        numbers |= {"loss": loss, "perplexity": 2.718281828**loss, "context_worth_nats": 0.1}
    return RungDone(step=step, n_seq=n_seq, diverged=diverged, metrics={**numbers, **metrics})


def write_rungs(
    sweep: Path,
    *done: RungDone,
    lr: float = 0.01,
    seed: int = 0,
    mode: str = "independent",
    lengths: Sequence[int] = (),
    outcome: str = "",
    attempt: int = 1,
    arm: str = "",
) -> str:
    """Write a trial with these rungs, of which one that diverged ends it, and return its id."""
    lengths = lengths or [one.n_seq for one in done]
    arm = arm or ("carry" if mode == "carry" else f"seq-{lengths[0]}")
    trial_id = f"{arm}-{lr:g}-{seed}"
    trial = sweep / "trials" / trial_id
    trial.mkdir(exist_ok=True)
    if attempt == 1:
        proposal = {"number": len(list((sweep / "trials").iterdir())), "arm": arm}
        (trial / "proposal.json").write_text(json.dumps(proposal))
    config = {
        "model.n_seq": lengths[-1],
        "ladder.lengths": ",".join(map(str, lengths)),
        "ladder.mode": mode,
        "optimizer.lr": lr,
    }
    sink = ParquetSink(trial)
    fixed: dict[str, Any] = {"sweep": "ladder", "n_params": 10, "causal": True, "data_hash": "d"}
    own: dict[str, Any] = {
        "trial_id": trial_id,
        "arm": arm,
        "seed": seed,
        "attempt": attempt,
        "config": config,
    }
    sink(TrialStarted(**fixed, **own))
    for one in done:
        sink(_window(one.step))
        sink(one)
        write_checkpoint(trial, f"checkpoint_seq{one.n_seq}_final.pt", one)
    outcome = outcome or ("diverged" if any(one.diverged for one in done) else "ok")
    if outcome != "running":
        loss = done[-1].metrics.get("loss") if done else None
        summary = {"steps": 100, "final_val_loss_nats": loss}
        sink(TrialEnded(step=100, outcome=outcome, reason="", summary=summary))
    sink.close()
    return trial_id


def write_checkpoint(trial: Path, name: str, one: RungDone) -> None:
    """A file where a trial leaves its model, after a length that it was through with."""
    if not one.diverged:
        (trial / "checkpoints").mkdir(exist_ok=True)
        (trial / "checkpoints" / name).write_text("a model")


def _window(step: int) -> StepsDone:
    return StepsDone(
        step=step, tokens=step, loss_nats=(1.0,), grad_norm=(1.0,), lr=0.1, window_seconds=0.1
    )
