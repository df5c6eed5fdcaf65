"""Folders of mismatch sweeps that nobody trained: cells with given numbers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from made_sweep import LOSS, write_record

from bkray.events import CellDone, TrialEnded, TrialStarted
from bkray.sinks.parquet import ParquetSink

Cells = Mapping[tuple[int, str], Mapping[str, float] | None]
"""By evaluation length and strategy; ``None`` for what is not applicable."""


def numbers(
    late_loss: float = 1.6, *, recall: float = 0.8, shift: float | None = 0.01, own: float = 9.0
) -> Any:
    """Metrics of a cell, ``own`` the loss of its own windows; without ``shift`` of ``retrain``."""
    moved = {"shift_energy": shift or 0.0, "shift_energy_noise": 0.01, "shift_p": 0.5}
    return {
        "loss_nats": late_loss - 0.1,
        "ppl": math.exp(late_loss - 0.1),
        "late_loss_nats": late_loss,
        "late_ppl": math.exp(late_loss),
        **{f"loss_nats_to_{n}": late_loss + n / 1e4 for n in range(64, 513, 64)},
        **(
            {}
            if shift is None
            else {**moved, "mrr_short": 0.9, "recall_short": 0.85, "own_late_loss_nats": own}
        ),
        "reach_tokens": 30.0,
        "entropy_nats": 2.5,
        "mrr_long": recall + 0.05,
        "recall_long": recall,
        "items": 64.0,
        "identical_items": 0.0,
        "identical_natural_items": 0.0,
        "microseconds_per_token": 12.0,
        "memory_mib": 20.0,
    }


def write_mismatch(folder: Path) -> Path:
    """Write the record of a mismatch sweep without trials."""
    return write_record(folder, swept=(), objectives=(LOSS,), name="mismatch", arms=[], base={})


def write_cells_of(
    sweep: Path,
    cells: Cells,
    *,
    model: str = "bk none",
    n_train: int = 256,
    seed: int = 0,
    outcome: str = "ok",
    arm: str = "",
) -> str:
    """Write a trial that came to these cells and return its id; ``running`` leaves it open."""
    mixer, position = model.split()
    arm = arm or f"{mixer}-{position}-{n_train}"
    trial_id = f"{arm}-{seed}"
    trial = sweep / "trials" / trial_id
    trial.mkdir()
    proposal = {"number": len(list((sweep / "trials").iterdir())), "arm": arm}
    (trial / "proposal.json").write_text(json.dumps(proposal))
    strategies = list(dict.fromkeys(name for _, name in cells if name != "retrain"))
    config: dict[str, Any] = {
        "model.mixer": mixer,
        "model.position": position,
        "model.n_seq": n_train,
        "mismatch.lengths": ",".join(str(n) for n in dict.fromkeys(n for n, _ in cells)),
        **({"mismatch.strategies": ",".join(strategies)} if strategies else {}),
    }
    sink = ParquetSink(trial)
    fixed: dict[str, Any] = {"sweep": "mismatch", "n_params": 10, "causal": True, "data_hash": "d"}
    own: dict[str, Any] = {"trial_id": trial_id, "arm": arm, "seed": seed, "attempt": 1}
    sink(TrialStarted(**fixed, **own, config=config))
    for (n_eval, strategy), metrics in cells.items() if outcome in ("ok", "running") else ():
        sink(CellDone(step=9, n_eval=n_eval, strategy=strategy, metrics=metrics or {}))
    if outcome != "running":
        summary = {"steps": 9, "final_val_loss_nats": 1.5}
        sink(TrialEnded(step=9, outcome=outcome, reason="", summary=summary))
    sink.close()
    return trial_id


def write_pair(
    sweep: Path,
    cell: Any,
    *,
    strategy: str = "extrapolate",
    seeds: int = 1,
    found: float = 0.8,
    **further: Any,
) -> None:
    """Write trials of 256 tokens with this cell at 512, and ``retrain`` to compare it with.

    ``cell`` is metrics, or a function of the seed; ``found`` is the recall of ``retrain``.
    """
    for seed in range(seeds):
        own = cell(seed) if callable(cell) else cell
        write_cells_of(sweep, {(512, strategy): own}, seed=seed, **further)
        best = {(512, "retrain"): numbers(shift=None, recall=found)}
        write_cells_of(sweep, best, n_train=512, seed=seed, **further)
