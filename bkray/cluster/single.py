"""One trial by itself, in this process: what ``bkray train`` runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bkray import trial
from bkray.cluster.carriers import Job, attempt
from bkray.cluster.interrupt import on_ctrl_c
from bkray.cluster.tuner import PARTS
from bkray.config import TrialConfig
from bkray.errors import BkrayError, ConfigError
from bkray.overrides import flatten
from bkray.sinks.sink import SweepView, Tee
from bkray.train.loop import Ending


def train_alone(config: TrialConfig, folder: Path, views: Sequence[SweepView]) -> dict[str, Any]:
    """Train in ``folder`` and return what its ``outcome.json`` says.

    A trial that ended ``ok`` there is not run again; any other goes on from its checkpoint.

    Raises:
        ConfigError, DataError: nothing can be trained as configured.
        ResumeError: the folder holds the checkpoint of another trial.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the output folder {folder} is a file: give another --out")
    trial_id, data_hash = trial.identify(config)
    if not _is_done(folder, trial_id):
        folder.mkdir(parents=True, exist_ok=True)
        job = Job(
            number=0,
            trial_id=trial_id,
            data_hash=data_hash,
            sweep="",
            overrides=flatten(config),
            folder=folder,
            sweep_folder=folder,
            deadline=None,
        )
        asked: list[Ending] = []
        view = Tee(*(view.trial(trial_id) for view in views))
        with on_ctrl_c(lambda: asked.append(Ending("interrupted", "ctrl-c"))):
            for event in attempt(
                job, PARTS, lambda: asked[0] if asked else None, passed_on=(BkrayError,)
            ):
                view(event)
        view.close()
    said: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return said


def _is_done(folder: Path, trial_id: str) -> bool:
    """Whether this very trial has ended ``ok`` in the folder."""
    described, outcome = folder / "config.json", folder / "outcome.json"
    if not (described.exists() and outcome.exists()):
        return False
    same = json.loads(described.read_text())["trial_id"] == trial_id
    return bool(same and json.loads(outcome.read_text())["outcome"] == "ok")
