"""Cells of a length mismatch in MLflow: a metric for each number of each."""

from pathlib import Path

import pytest
from shown import ended, evaluation, runs_of, show, started, window

from bkray.events import CellDone
from bkray.sinks.mlflow import open_store


def test_each_cell_has_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking = open_store(tmp_path / "runs")
    cells = [
        CellDone(step=16, n_eval=512, strategy="truncate", metrics={"ppl": 5.5}),
        CellDone(step=16, n_eval=512, strategy="extrapolate", metrics={}),
    ]
    show(tracking, "mismatch", [started(), window(16), evaluation(16), *cells, ended(16)])
    _, [trial] = runs_of(tracking, "mismatch")
    told = {k: v for k, v in trial.data.metrics.items() if k.startswith("mismatch/")}
    assert told == {
        "mismatch/512/truncate/applicable": 1.0,
        "mismatch/512/truncate/ppl": 5.5,
        "mismatch/512/extrapolate/applicable": 0.0,
    }
