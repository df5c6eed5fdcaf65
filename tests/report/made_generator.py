"""Folders of generator sweeps that nobody trained: trials with given numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from made_sweep import write_record

from bkray.events import EvalDone, Measured, TrialEnded, TrialStarted
from bkray.sinks.parquet import ParquetSink

OBJECTIVES = (
    {"column": "explained_variance", "direction": "maximize"},
    {"column": "downstream_accuracy", "direction": "maximize"},
)


def write_generators(folder: Path) -> Path:
    """Write the record of a generator sweep without trials."""
    swept = ("generator.training_sequence_length",)
    base = {"data.embeddings": "spectra"}
    return write_record(
        folder, swept=swept, objectives=OBJECTIVES, name="generator", arms=[], base=base
    )


def write_generator_trial(
    sweep: Path,
    length: int,
    seed: int,
    *,
    explained: float = 0.5,
    accuracy: float | None = 0.5,
    outcome: str = "ok",
    kl_nats: float = 3.0,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write a trial that came to these numbers; ``running`` leaves it open."""
    number = len(list((sweep / "trials").iterdir()))
    trial = sweep / "trials" / f"trial-{number}"
    trial.mkdir()
    (trial / "proposal.json").write_text(json.dumps({"number": number, "arm": ""}))
    sink = ParquetSink(trial)
    sink(
        TrialStarted(
            trial_id=trial.name,
            sweep="generator",
            arm="",
            seed=seed,
            attempt=1,
            config={
                "generator.training_sequence_length": length,
                "train.batch_size": 8,
                "seed": seed,
                **(config or {}),
            },
            n_params=1000 * length,
            causal=False,
            data_hash="d",
        )
    )
    if outcome == "ok":
        metrics = {"generator/explained_variance": explained, "generator/kl_nats": kl_nats}
        sink(
            EvalDone(
                step=4, tokens=1, split="val", loss_nats=0.9, metrics={"generator/kl_nats": 0.1}
            )
        )
        sink(EvalDone(step=9, tokens=1, split="val", loss_nats=0.3, metrics=metrics))
        measured = {"generator/pooling_bound": 0.9, "generator/training_peak_mib": 10.0}
        if accuracy is not None:
            measured["generator/downstream_accuracy"] = accuracy
        sink(Measured(step=9, metrics=measured))
    if outcome == "diverged":
        early = {"generator/explained_variance": 0.05, "generator/kl_nats": kl_nats}
        sink(EvalDone(step=4, tokens=1, split="val", loss_nats=0.9, metrics=early))
    if outcome != "running":
        reason = "" if outcome == "ok" else "posterior collapse: it says nothing"
        summary = {"steps": 9, "explained_variance": explained, "downstream_accuracy": accuracy}
        known = {**summary, "train_seconds": 2.5} if outcome == "ok" else {"steps": 9}
        sink(TrialEnded(step=9, outcome=outcome, reason=reason, summary=known))
    sink.close()
