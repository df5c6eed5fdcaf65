"""A ladder in MLflow: what each length came to, under the guides' names."""

import pytest
from shown import ended, evaluation, history, runs_of, show, started, window

from bkray.events import Event, RungDone
from bkray.sinks.mlflow import Tracking, open_store


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return open_store(tmp_path_factory.mktemp("runs"))


def climbed(step: int, n_seq: int, **metrics: float) -> RungDone:
    told = {"loss": 2.0, "gradient_norm": 1.5, "learning_rate": step / 1e4, **metrics}
    return RungDone(step=step, n_seq=n_seq, diverged=False, metrics=told)


def test_each_length_has_its_metrics_at_its_last_step(tracking: Tracking) -> None:
    first: list[Event] = [window(16), evaluation(16), climbed(16, 128)]
    second = [window(32), evaluation(32), climbed(32, 512, schatten_s1=0.5, loss=1.0)]
    show(tracking, "ladder", [started(), *first, *second, ended(32)])
    _, [trial] = runs_of(tracking, "ladder")
    told = {name: value for name, value in trial.data.metrics.items() if name.startswith("seq")}
    assert told == {
        "seq128/diverged": 0.0,
        "seq128/loss": 2.0,
        "seq128/gradient_norm": 1.5,
        "seq128/learning_rate": 0.0016,
        "seq512/diverged": 0.0,
        "seq512/loss": 1.0,
        "seq512/gradient_norm": 1.5,
        "seq512/learning_rate": 0.0032,
        "seq512/schatten_s1": 0.5,
    }
    assert history(tracking, trial, "seq128/loss") == [(16, 2.0)]
    assert history(tracking, trial, "learning_rate") == [(16, 0.0016), (32, 0.0032)]
