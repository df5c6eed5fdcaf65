"""Short trials on a small text, played to their end, to a stop, or to a kill."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_config

from bkray.config import TrialConfig
from bkray.events import (
    Event,
    StepsDone,
    rows,
)
from bkray.train import checkpoint
from bkray.trial import run

SHORT: dict[str, Any] = {
    "n_layers": 2,
    "train.steps": 40,
    "batch_size": 4,
    "eval_every": 20,
    "eval_windows": 4,
    "checkpoint_every": 10,
    "warmup_steps": 4,
    "lr": 0.01,
    "seed": 3,
    "device": "cpu",
}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dropout": {"dropout": 0.2, "accumulation": 2},
    "experts": {"n_experts": 3, "top_k": 2, "balance_weight": 0.1},
    "act": {"depth": "act", "act_lambda": 0.05, "act_threshold": 0.8},
    "bk, act": {"mixer": "bk", "depth": "act", "act_threshold": 0.8},
    "length, exit": {"length": "learned", "length_bins": 4, "depth": "exit"},
    "sparsity, experts": {"sparsity": "learned", "n_experts": 2},
    "ladder": {"ladder.lengths": "4,8,16", "mode": "carry", "batch_size": 2},
    "all of it": {
        "depth": "act",
        "act_threshold": 0.8,
        "n_experts": 2,
        "dropout": 0.1,
        "position": "learned",
        "precision": "float64",
    },
}


def short_config(text: Path, mixer: str = "linear_recurrence", **knobs: Any) -> TrialConfig:
    return tiny_config(mixer, corpus=str(text), **{**SHORT, **knobs})


def play(
    config: TrialConfig, folder: Path | None, *, stop_at: int = 0, kill_at: int = 0
) -> list[Event]:
    """Return the events of a trial, up to the end, a stop, or a kill without a last word."""
    events: list[Event] = []
    answers: Iterator[tuple[str, str] | None] = (
        ("interrupted", "told to") if events[-1].step >= stop_at > 0 else None
        for _ in itertools.count()
    )
    trial = run(config, folder, sweep="a sweep", stop=lambda: next(answers))
    for event in trial:
        events.append(event)
        if event.step >= kill_at > 0 and isinstance(event, StepsDone):
            trial.close()
    return events


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def numbers(events: list[Event]) -> dict[tuple[str, int, str, str], float]:
    """Return every number but times, by key; what is said twice must be said alike."""
    said: dict[tuple[str, int, str, str], float] = {}
    for row in itertools.chain.from_iterable(map(rows, events)):
        timed = "second" in row.name or "memory" in row.name or row.kind in ("measured", "end")
        if not timed:
            assert said.setdefault(row[:4], row.value) == row.value, row
    return said


def weights(folder: Path, trial_id: str) -> dict[str, torch.Tensor]:
    state, _ = checkpoint.load(folder / "checkpoints", trial_id)
    assert state is not None
    return dict(state["model"])


KNOWN = {
    *("causal", "steps", "tokens", "n_params", "seq_len", "best_val_loss_nats", "best_val_ppl"),
    *("final_val_loss_nats", "avg_layers_executed", "speedup_estimate", "speedup_measured"),
    *("tokens_per_second", "train_seconds", "peak_memory_mib", "grad_norm_mean", "grad_norm_std"),
    *("spike_count", "ponder_cost", "spikes_per_1000_steps"),
}
