"""Whole trials in chunks: the numbers of whole rows, and what diverges is explained."""

from pathlib import Path
from typing import Any

import pytest
from faults import recorded
from trials import of, short_config

from bkray.config import TrialConfig
from bkray.events import EvalDone, StepsDone, TrialEnded, Warned
from bkray.replay import replay
from bkray.train.findings import FOLDER, read_diagnosis
from bkray.train.team import ALONE
from bkray.trial import run


def events_of(config: TrialConfig) -> list[Any]:
    return list(run(config, None))


@pytest.mark.parametrize("mixer", ["bk", "linear_recurrence", "mamba"])
def test_a_trial_in_chunks_is_the_trial(mixer: str, text: Path) -> None:
    knobs = {"depth": "act", "train.steps": 4, "train.precision": "float64", "n_seq": 24}
    whole = events_of(short_config(text, mixer, **knobs))
    said = events_of(short_config(text, mixer, **knobs, **{"train.chunk": 7}))
    for kind in (StepsDone, EvalDone):
        for one, other in zip(of(kind, said), of(kind, whole), strict=True):
            assert one.loss_nats == pytest.approx(other.loss_nats, abs=1e-10)
            assert one.metrics == pytest.approx(other.metrics, abs=1e-10)
    assert of(TrialEnded, said)[0].outcome == "ok"
    assert of(StepsDone, said)[0].activations.keys() == of(StepsDone, whole)[0].activations.keys()


def test_a_trial_that_diverges_in_chunks_is_explained(text: Path, tmp_path: Path) -> None:
    config = short_config(text, "bk", **{"optimizer.lr": 30.0, "train.chunk": 7})
    events = recorded(ALONE, config, tmp_path)
    assert of(TrialEnded, events)[0].outcome == "diverged"
    assert not of(Warned, events)
    found = read_diagnosis(tmp_path / FOLDER)
    assert found is not None
    assert (found.kind, found.largest_loss_difference) == ("growth", 0)
    assert replay(tmp_path).is_reproduced
