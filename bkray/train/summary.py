"""What is left of a trial when it is over: its measured speed and its columns of the table."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bkray.config import TrialConfig
from bkray.nn.build import language_model
from bkray.nn.equal import with_mixer
from bkray.overrides import DENSE, acting, build, flatten
from bkray.train import measure
from bkray.train.halting import advice
from bkray.train.run import Run
from bkray.train.speeds import speeds


def measure_speed(trial: Run, vocab_size: int) -> dict[str, float]:
    """Time the model in evaluation mode beside a dense one of the sweep's depth."""
    config = trial.config
    tokens_BN = timed_rows(trial).to(trial.device)
    rival = None
    if config.model.build is None:
        rival = dense_rival(config, vocab_size).to(tokens_BN.device)
        rival.to(next(trial.model.parameters()).dtype)
    with trial.autocast:
        seen = measure.speed(trial.model, rival, tokens_BN)
        flops = measure.flops_per_token(trial.model, tokens_BN)
    metrics = {
        "speed/eval_microseconds_per_token": seen.seconds_per_token * 1e6,
        "speed/flops_per_token": flops,
    }
    if config.train.speed_lengths is not None:
        metrics |= speeds(config, vocab_size, tokens_BN.device, trial.autocast)
    if seen.speedup is not None:
        metrics["speed/speedup_measured"] = seen.speedup
    layers = _layers_executed(trial)
    # The middle of an hourglass counts whole layers, but over half the sites.
    if layers is not None and rival is not None and not config.model.multiscale:
        metrics["speed/speedup_estimate"] = reference_layers(config) / layers
    return metrics


def timed_rows(trial: Run) -> Tensor:
    """Return the inputs that speed is measured on, (B, N), of each kind as many."""
    plan, n_kinds = trial.config.train, max(1, len(trial.task.kinds))
    n_rows = max(n_kinds, (plan.speed_rows or plan.batch_size) // n_kinds * n_kinds)
    return trial.validation[0][:n_rows, : plan.chunk]


def dense_rival(config: TrialConfig, vocab_size: int) -> nn.Module:
    """Return an untrained dense model of the sweep's depth: as fast as a trained one."""
    dense = {**DENSE, "model.n_layers": reference_layers(config)}
    if config.train.speed_reference_experts is not None:
        dense["model.n_experts"] = config.train.speed_reference_experts
    plain = build(acting({**flatten(config), **dense})).model
    if config.train.speed_reference_mixer is not None:
        plain = build(with_mixer(plain, config.train.speed_reference_mixer)).model
    return language_model(plain, vocab_size)


def reference_layers(config: TrialConfig) -> int:
    """Return the depth that speedups are relative to."""
    layers = config.train.speed_reference_layers or config.model.n_layers
    assert layers is not None
    return layers


def summary(trial: Run, measured: Mapping[str, float], peak_mib: float) -> dict[str, Any]:
    """Return the trial's columns of ``trials.parquet``; ``None`` where a number does not apply."""
    progress, steps = trial.progress, trial.progress.step
    spikes = progress.health.spike_count
    known = {
        "causal": bool(getattr(trial.model, "causal", False)),
        "steps": steps,
        "tokens": progress.tokens,
        "n_params": sum(p.numel() for p in trial.model.parameters()),
        "seq_len": trial.config.n_seq,
        "best_val_loss_nats": progress.best_val_loss_nats,
        "final_val_loss_nats": progress.final_val_loss_nats,
        "tokens_per_second": progress.tokens / progress.train_seconds if steps else None,
        "train_seconds": progress.train_seconds,
        "peak_memory_mib": peak_mib,
        "grad_norm_mean": progress.norms.mean if progress.norms.count else None,
        "grad_norm_std": progress.norms.std,
        "spike_count": spikes,
        "spikes_per_1000_steps": 1000 * spikes / steps if steps else None,
        "interventions": progress.interventions,
        **trial.task.columns(trial, measured),
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in known.items()
    }


def columns(trial: Run, measured: Mapping[str, float]) -> dict[str, Any]:
    """Return the columns that only language models have."""
    progress = trial.progress
    return {
        "best_val_ppl": _exp(progress.best_val_loss_nats),
        "avg_layers_executed": _layers_executed(trial),
        "avg_predicted_length": progress.metrics.get("length/avg_length"),
        "speedup_estimate": measured.get("speed/speedup_estimate"),
        "speedup_measured": measured.get("speed/speedup_measured"),
        "schatten_s1": progress.metrics.get("stability/schatten_s1"),
        "schatten_s2": progress.metrics.get("stability/schatten_s2"),
        "condition_number": progress.metrics.get("stability/condition_number"),
        "ponder_cost": progress.metrics.get("act/ponder_cost"),
        "advice": advice(progress.metrics, trial.config.model.n_layers or 1),
    }


def _layers_executed(trial: Run) -> float | None:
    """Return the mean over the validation tokens; ``None`` where nobody has counted.

    An evaluation that says nothing of layers has seen every token run through all of them.
    """
    model, progress = trial.config.model, trial.progress
    for name in ("act/avg_layers_executed", "depth/avg_layers_executed"):
        if name in progress.metrics:
            return progress.metrics[name]
    is_dense = all(getattr(model, path.rpartition(".")[2]) == off for path, off in DENSE.items())
    is_known = is_dense or progress.final_val_loss_nats is not None
    return float(model.n_layers) if is_known and model.n_layers else None


def _exp(loss_nats: float | None) -> float | None:
    return None if loss_nats is None or not loss_nats < 700 else math.exp(loss_nats)
