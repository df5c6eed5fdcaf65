"""What speedups are relative to, and the columns of odd trials."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny import MIXERS, tiny_config

from bkray.data.shards import prepare
from bkray.errors import ConfigError
from bkray.nn.depth import DenseDepth
from bkray.nn.lm import LanguageModel
from bkray.stability import Health, Norms
from bkray.train.checkpoint import Progress
from bkray.train.summary import dense_rival, reference_layers, summary, timed_rows
from bkray.trial import compose


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_rival_is_the_dense_model_of_the_reference_depth(mixer: str) -> None:
    config = tiny_config(mixer, depth="act", n_experts=2, top_k=2, speed_reference_layers=5)
    rival = dense_rival(config, 256)
    assert isinstance(rival, LanguageModel)
    assert isinstance(rival.depth, DenseDepth)
    assert len(rival.blocks) == reference_layers(config) == 5
    dense = tiny_config(mixer, n_experts=2, top_k=2)
    block = rival.blocks[0]
    assert type(block.mixer) is type(dense_rival(dense, 256).blocks[0].mixer)  # type: ignore
    assert len(block.feed_forward.experts) == 2


def test_the_rival_has_nothing_on_that_saves_work() -> None:
    features = {"multiscale": True, "sparsity": "learned", "n_layers": 4, "length": "learned"}
    rival = dense_rival(tiny_config(**features), 256)
    assert type(rival.depth) is DenseDepth  # type: ignore[union-attr]
    assert (
        rival.state_dict().keys() == dense_rival(tiny_config(n_layers=4), 256).state_dict().keys()
    )


def test_the_rivals_experts_are_the_trials_unless_told() -> None:
    told = dense_rival(tiny_config(n_experts=4, top_k=2, speed_reference_experts=1), 256)
    assert told.state_dict().keys() == dense_rival(tiny_config(), 256).state_dict().keys()
    unlike = dense_rival(tiny_config(n_experts=4, top_k=2), 256)
    assert told.state_dict().keys() != unlike.state_dict().keys()


def test_the_reference_is_the_trials_own_depth_unless_told() -> None:
    assert reference_layers(tiny_config(n_layers=2)) == 2
    assert reference_layers(tiny_config(n_layers=2, speed_reference_layers=1)) == 1


def test_speed_is_timed_on_rows_of_each_kind_alike(text: Path) -> None:
    def timed(corpus: str, **knobs: Any) -> int:
        config = tiny_config(corpus=corpus, eval_windows=12, batch_size=5, **knobs)
        return len(timed_rows(compose(config, prepare(config.data, 16), None)))

    assert timed(str(text)) == 5
    assert timed(str(text), speed_rows=11) == 11
    assert timed("mixture", max_bytes=4096) == 3
    assert timed("mixture", max_bytes=4096, speed_rows=11) == 9
    with pytest.raises(ConfigError, match=r"speed_rows must be at most .*eval_windows=12, got 13"):
        tiny_config(eval_windows=12, speed_rows=13)


def columns(text: Path, knobs: Mapping[str, Any] = {}, **progress: Any) -> dict[str, Any]:
    config = tiny_config(corpus=str(text), **knobs)
    trial = compose(config, prepare(config.data, 16), None)
    trial.progress = Progress(**progress)
    return summary(trial, {}, 1.0)


def test_a_trial_without_a_step_knows_no_rates(text: Path) -> None:
    said = columns(text)
    unknown = {name for name, value in said.items() if value is None}
    assert unknown == {
        *("best_val_loss_nats", "best_val_ppl", "final_val_loss_nats", "speedup_estimate"),
        *("speedup_measured", "tokens_per_second", "grad_norm_mean", "grad_norm_std"),
        *("ponder_cost", "spikes_per_1000_steps", "avg_predicted_length"),
        *("schatten_s1", "schatten_s2", "condition_number"),
    }
    assert said["steps"] == 0


def test_gradient_norms_have_mean_and_standard_deviation(text: Path) -> None:
    norms = Norms()
    for norm in (1.0, 3.0, math.nan):
        norms.add(norm)
    said = columns(text, step=3, train_seconds=1.0, norms=norms)
    assert (said["grad_norm_mean"], said["grad_norm_std"]) == (2.0, 1.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e300])
def test_no_column_is_nan_or_infinite_whatever_was_seen(text: Path, broken: float) -> None:
    said = columns(
        text,
        step=5,
        tokens=10,
        train_seconds=1.0,
        best_val_loss_nats=broken,
        final_val_loss_nats=broken,
        norms=Norms(count=1, mean=broken, square_sum=abs(broken)),
        metrics={"act/ponder_cost": broken, "act/avg_layers_executed": broken}
        | {"act/std_layers_executed": broken},
    )
    for name, value in said.items():
        assert not isinstance(value, float) or math.isfinite(value), name
    assert said["best_val_ppl"] is None or broken < 0


def test_spikes_are_counted_per_thousand_steps(text: Path) -> None:
    said = columns(text, step=50, train_seconds=2.0, tokens=800, health=Health(1.0, 3))
    assert said["spike_count"] == 3
    assert said["spikes_per_1000_steps"] == 60.0
    assert said["tokens_per_second"] == 400.0


LEARNED = {"length": "learned", "length_bins": 4}
SPREAD = {"act/std_layers_executed": 0.1}


@pytest.mark.parametrize(
    ("knobs", "metrics", "layers"),
    [
        ({}, {}, 3.0),
        ({"depth": "act"}, {"act/avg_layers_executed": 1.5} | SPREAD, 1.5),
        (LEARNED, {"depth/avg_layers_executed": 0.75, "length/avg_length": 4.0}, 0.75),
        ({**LEARNED, "depth": "act"}, {"act/avg_layers_executed": 0.5} | SPREAD, 0.5),
    ],
)
def test_layers_are_a_mean_over_all_sites(
    text: Path, knobs: dict[str, Any], metrics: dict[str, float], layers: float
) -> None:
    said = columns(text, knobs, final_val_loss_nats=1.0, metrics=metrics)
    assert said["avg_layers_executed"] == layers
    assert said["avg_predicted_length"] == metrics.get("length/avg_length")


@pytest.mark.parametrize("knobs", [{"depth": "act"}, LEARNED])
def test_what_nobody_has_counted_is_unknown(text: Path, knobs: dict[str, Any]) -> None:
    assert columns(text, knobs)["avg_layers_executed"] is None
