"""A worker that dies once its trial has ended takes nothing with it."""

import json
import os
from pathlib import Path

import pytest
from standin import PARTS, identify, sweep_of

from bkray.cluster.carriers import Parts
from bkray.cluster.tuner import SweepOptions, run_sweep
from bkray.events import Event, TrialEnded
from bkray.sinks.parquet import ParquetSink


class DyingSink(ParquetSink):
    """Its process dies, once, between writing an outcome and telling it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._died = folder.parent.with_name("died")

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, TrialEnded) and not self._died.exists():
            self._died.touch()
            os._exit(1)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_wrote_its_outcome_is_not_run_again(tmp_path: Path) -> None:
    parts = Parts(PARTS.run_trial, DyingSink)
    options = SweepOptions(out=tmp_path, preset="p", scheduler="none", concurrency=1)
    ended = run_sweep(sweep_of(n_trials=2), options, parts=parts, identify=identify)
    assert ended.outcomes == {"ok": 2}
    outcomes = [json.loads(p.read_text()) for p in tmp_path.glob("trials/*/outcome.json")]
    assert [outcome["attempt"] for outcome in outcomes] == [1, 1]
