"""``bkray frontier`` sweeps the inference knobs of one checkpoint and says what is exact."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import recorded
from trials import play, short_config

from bkray.atomic import write_json
from bkray.cli import app
from bkray.errors import ConfigError, ResumeError
from bkray.overrides import build, flatten
from bkray.train.team import ALONE
from bkray.trial import open_checkpoint

Say = Callable[..., str]
ALL_AT_ONCE: dict[str, Any] = {
    "depth": "act",
    "act_threshold": 0.8,
    "n_layers": 3,
    "length": "learned",
    "length_bins": 4,
    "length_penalty": 0.05,
}


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Call the verb here; return what it printed."""

    def call(*words: str | Path) -> str:
        capsys.readouterr()
        assert app(["frontier", *map(str, words)], standalone_mode=False) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def trial(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial of ACT within a learned length."""
    folder = tmp_path_factory.mktemp("frontier") / "trial"
    recorded(ALONE, short_config(text, **ALL_AT_ONCE), folder)
    return folder


def test_a_trial_of_both_kinds_end_to_end(trial: Path, say: Say) -> None:
    said = say(trial)
    for words in (
        "step 40, 4 windows of 16 tokens",
        "best length bins (exhaustive search), exact; behind a cut: copy",
        "as predicted",
        "model.act_threshold (trained at 0.8), all lengths uncut; estimate: from one pass",
        "largest gap: ",
        f"all of it: {trial / 'frontier.json'}",
    ):
        assert words in said, words
    written = json.loads((trial / "frontier.json").read_text())
    assert json.loads(say(trial, "--json"), parse_constant=pytest.fail) == written
    prices = {point["price_nats"] for point in written["lengths"]["points"]}
    assert prices == {0.01, 0.05, 0.1, 1.0}
    assert len(written["stops"]["estimate"]) == 200
    assert len(written["stops"]["checked"]) == 8


def test_the_predictors_line_is_the_trials_own_score(trial: Path, say: Say) -> None:
    told = json.loads(say(trial, "--json"))
    outcome = json.loads((trial / "outcome.json").read_text())
    predicted, own = told["lengths"]["predicted"], outcome["summary"]
    assert predicted["loss_nats"] == pytest.approx(own["final_val_loss_nats"], rel=1e-6)
    assert predicted["mean_length"] == pytest.approx(own["avg_predicted_length"])


def test_a_dense_trial_has_lengths_alone(text: Path, tmp_path: Path, say: Say) -> None:
    recorded(ALONE, short_config(text, **{"train.steps": 4}), tmp_path)
    said = say(tmp_path)
    assert "behind a cut: repeat" in said
    assert "as predicted" not in said
    assert "threshold" not in said
    assert json.loads((tmp_path / "frontier.json").read_text())["stops"] is None


def test_an_exit_is_swept_and_an_hourglass_said_not_to_be(
    text: Path, tmp_path: Path, say: Say
) -> None:
    plan = {"train.steps": 4, "depth": "exit", "exit_rule": "entropy", "n_layers": 3}
    recorded(ALONE, short_config(text, **plan), tmp_path / "plain")
    assert "model.exit_threshold (trained at 0.5)" in say(tmp_path / "plain")
    both = {**plan, "depth": "act_exit"}
    recorded(ALONE, short_config(text, **both), tmp_path / "both")
    assert "note: the thresholds are not swept with model.depth=act_exit" in say(tmp_path / "both")
    recorded(ALONE, short_config(text, **plan, multiscale=True), tmp_path / "hourglass")
    assert "note: the threshold is not swept with model.multiscale=true" in say(
        tmp_path / "hourglass"
    )


def test_what_cannot_be_swept_is_one_clear_error(text: Path, tmp_path: Path, say: Say) -> None:
    with pytest.raises(ResumeError, match=r"holds no trial: config\.json is missing"):
        say(tmp_path)
    write_json(tmp_path / "config.json", {"config": flatten(short_config(text))})
    with pytest.raises(ResumeError, match=r"no checkpoint yet: last\.pt is missing"):
        say(tmp_path)
    assert not (tmp_path / "frontier.json").exists()


def test_an_own_model_without_these_knobs_is_one_clear_error(
    text: Path, tmp_path: Path, say: Say
) -> None:
    plan = {"steps": 2, "batch_size": 2, "eval_windows": 2}
    own = {"model.build": "examples.own_model:build", "model.n_seq": 16}
    knobs = {f"train.{name}": value for name, value in plan.items()}
    config = build({**own, **knobs, "data.corpus": str(text)})
    play(config, tmp_path)
    write_json(tmp_path / "config.json", {"config": flatten(config)})
    assert open_checkpoint(tmp_path)[0].progress.step == 2
    with pytest.raises(ConfigError, match="own_model:build has no knob to sweep"):
        say(tmp_path)
