"""One trial by itself, in this process: what ``bkray train`` runs."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from bkray import trial
from bkray.cluster.carriers import Job, ask_to_stop, asked_to_stop, attempt, forget_stop
from bkray.cluster.tuner import PARTS, ctrl_c
from bkray.config import TrialConfig
from bkray.overrides import flatten
from bkray.sinks.sink import SweepView


def train_alone(
    config: TrialConfig, out: Path | None, runs: Path, views: tuple[SweepView, ...]
) -> tuple[Path, dict[str, Any]]:
    """Train into ``out``, or ``runs/<trial id>``; return the folder and what ``outcome.json`` says.

    A trial that ended ``ok`` there is not run again; any other goes on from its checkpoint.

    Raises:
        ConfigError, DataError, ResumeError: nothing can be trained as configured.
    """
    trial_id, data_hash = trial.identify(config)
    folder = out or runs / trial_id
    written = folder / "outcome.json"
    if written.exists():
        ...
