"""What the folders of a sweep's trials remember: how they ended, and their validation losses."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from bkray.cluster.retries import BROKEN, gives_up
from bkray.events import TrialEnded
from bkray.overrides import row_length
from bkray.sinks.parquet import read_rows
from bkray.train import attempts


@dataclass(frozen=True, slots=True)
class Stored:
    """A trial that was begun. ``ended`` is ``None`` where it is to go on, or to be tried again.

    ``curve`` are its validation losses in nats, by tokens trained on; ``number`` is its place in
    the sweep.
    """

    trial_id: str
    number: int
    ended: TrialEnded | None
    curve: Mapping[float, float]


def stored_trials(sweep_folder: Path) -> list[Stored]:
    """Return the trials that said something before the process ended, in their order."""
    folders = [path.parent for path in sweep_folder.glob("trials/*/config.json")]
    return sorted(filter(None, map(_stored, folders)), key=lambda trial: trial.number)


def n_ended(sweep_folder: Path) -> int:
    """Return how many trials have ended for good."""
    folders = [path.parent for path in sweep_folder.glob("trials/*/config.json")]
    return sum(end_of(folder) is not None for folder in folders)


def end_of(folder: Path) -> TrialEnded | None:
    """Return how the trial in ``folder`` ended for good, ``None`` if it did not."""
    config = _json(folder / "config.json")
    return _ended(folder, config["attempt"]) if config else None


def last_end(folder: Path) -> TrialEnded | None:
    """Return how the last attempt in ``folder`` ended, if it said so, also if not for good."""
    config, said = _json(folder / "config.json"), _json(folder / "outcome.json")
    return _as_event(said) if config and said and said["attempt"] >= config["attempt"] else None


def _stored(folder: Path) -> Stored | None:
    config, proposal = _json(folder / "config.json"), _json(folder / "proposal.json")
    if config.get("trial_id") != folder.name or not proposal:
        return None
    knobs = config["config"]
    per_step = knobs["train.batch_size"] * (row_length(knobs) or 1)
    rows = read_rows(folder).filter(pc.field("name") == "val/loss_nats").to_pylist()
    losses = {row["step"] * per_step: row["value"] for row in rows}
    ended = _ended(folder, config["attempt"])
    return Stored(folder.name, proposal["number"], ended, losses)


def _ended(folder: Path, attempt: int) -> TrialEnded | None:
    said = _json(folder / "outcome.json")
    if not said or said["attempt"] < attempt or said["outcome"] == "interrupted":
        return None
    if said["outcome"] in BROKEN and not gives_up(attempts.last(folder)):
        return None
    return _as_event(said)


def _as_event(said: Mapping[str, Any]) -> TrialEnded:
    return TrialEnded(
        step=said["step"],
        outcome=said["outcome"],
        reason=said["stop_reason"],
        summary=said["summary"],
    )


def _json(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return read
