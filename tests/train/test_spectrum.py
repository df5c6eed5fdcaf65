"""The monitor against dense matrices of the potentials that a model has, and what it decides."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import in_team
from tiny import random_tokens, tiny_model
from torch import nn

from bkray.config import TrialConfig
from bkray.data.shards import prepare
from bkray.errors import ConfigError
from bkray.events import EvalDone, Event, StepsDone, TrialEnded
from bkray.nn.bk import BKMixer, bounded
from bkray.ops import birman_schwinger as bs
from bkray.overrides import acting, build, flatten
from bkray.train.checkpoint import FOLDER, NAME, read
from bkray.train.spectrum import spectrum
from bkray.train.team import ALONE, Team
from bkray.trial import compose, open_checkpoint, run

PLAIN = torch.autocast("cpu", enabled=False)
NAMES = ("schatten_s1", "schatten_s2", "condition_number")
SMALL = {
    "model.mixer": "bk",
    "model.d_model": 16,
    "model.n_layers": 2,
    "model.n_heads": 4,
    "model.n_values": 2,
    "model.n_seq": 16,
    "model.d_hidden": 24,
    "train.steps": 6,
    "train.batch_size": 4,
    "train.eval_every": 3,
    "train.eval_windows": 4,
    "train.checkpoint_every": 3,
    "train.device": "cpu",
    "train.monitor": "birman_schwinger",
    "optimizer.warmup_steps": 2,
}


def config_for(text: Path, **knobs: Any) -> TrialConfig:
    return build({**SMALL, "data.corpus": str(text), **knobs})


def strong_model(**knobs: Any) -> nn.Module:
    model = tiny_model("bk", **knobs).eval()
    for mixer in mixers(model):
        nn.init.normal_(mixer.potential.weight, std=0.7)
    return model


def mixers(model: nn.Module) -> list[BKMixer]:
    return [part for part in model.modules() if isinstance(part, BKMixer)]


@torch.no_grad()
def dense_numbers(model: nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the numbers of every window, layer and head, from singular values."""
    said: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
    for mixer in mixers(model):
        heard: list[torch.Tensor] = []
        handle = mixer.potential.register_forward_hook(lambda *a, h=heard: h.append(a[-1]))
        model(tokens)
        handle.remove()
        operator = bs.dense_operator(bounded(heard[0]), mixer.energy, mixer.eta)
        values = torch.linalg.svdvals(operator)
        said["schatten_s1"].append(values.sum(-1))
        said["schatten_s2"].append(values.square().sum(-1).sqrt())
        said["condition_number"].append(torch.linalg.cond(torch.eye(tokens.shape[1]) + operator))
    return {name: torch.stack(values) for name, values in said.items()}


@pytest.mark.parametrize("chunk", [None, 5])
def test_the_numbers_are_those_of_the_models_own_potentials(chunk: int | None) -> None:
    model, tokens = strong_model(), random_tokens(3, 16)
    metrics, conditions = spectrum(model, tokens, chunk=chunk, autocast=PLAIN)
    expected = dense_numbers(model, tokens)
    for name in ("schatten_s1", "schatten_s2"):
        said = metrics[f"stability/{name}"]
        assert said == pytest.approx(float(expected[name].mean()), rel=1e-10)
        assert said <= metrics[f"stability/{name}_bound"]
    largest_L = expected["condition_number"].amax((1, 2))
    assert list(conditions) == [f"blocks.{i}.mixer" for i in range(3)]
    assert list(conditions.values()) == pytest.approx(largest_L.tolist(), rel=5e-3)
    assert metrics["stability/condition_number"] == max(conditions.values()) > 2


def test_long_chains_have_the_bound_and_the_exact_norm_of_their_start() -> None:
    model, tokens = strong_model(n_layers=1), random_tokens(3, 600)
    metrics, _ = spectrum(model, tokens, chunk=None, autocast=PLAIN)
    start, _ = spectrum(model, tokens[:1, :512], chunk=None, autocast=PLAIN)
    assert metrics["stability/schatten_s1"] == metrics["stability/schatten_s1_bound"]
    exact = metrics["stability/schatten_s1_first_512"]
    assert exact == pytest.approx(start["stability/schatten_s1"], rel=1e-10)
    assert exact < metrics["stability/schatten_s1"]
    assert "stability/schatten_s1_first_512" not in start


def test_only_looks() -> None:
    model, tokens = strong_model().train(), random_tokens(2, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spectrum(model, tokens, chunk=None, autocast=PLAIN)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(mixer.potential._forward_hooks for mixer in mixers(model))


def test_tokens_that_left_are_not_in_a_chain() -> None:
    """A window says the same alone and among others, which padding would spoil."""
    model, tokens = strong_model(depth="act"), random_tokens(2, 16)
    both, _ = spectrum(model, tokens, chunk=None, autocast=PLAIN)
    one, two = (
        spectrum(model, row, chunk=None, autocast=PLAIN).metrics for row in tokens.split(1)
    )
    assert both["stability/condition_number"] == max(
        said["stability/condition_number"] for said in (one, two)
    )


def test_a_nan_is_told() -> None:
    model, tokens = strong_model(), random_tokens(1, 16)
    with torch.no_grad():
        mixers(model)[1].potential.weight[0, 0] = torch.nan
    metrics, conditions = spectrum(model, tokens, chunk=None, autocast=PLAIN)
    assert all(math.isnan(value) for value in metrics.values())
    assert math.isfinite(conditions["blocks.0.mixer"])
    assert math.isnan(conditions["blocks.1.mixer"])


def test_a_trial_tells_it_at_every_evaluation_and_in_its_columns(text: Path) -> None:
    events = list(run(config_for(text), None))
    seen = [event.metrics for event in events if isinstance(event, EvalDone)]
    assert len(seen) == 2
    summary = next(event.summary for event in events if isinstance(event, TrialEnded))
    for name in NAMES:
        assert summary[name] == seen[-1][f"stability/{name}"] > 0
    assert "stability/precision_upgrades" not in seen[0]


def test_watching_changes_no_training(text: Path) -> None:
    losses = [
        [e.loss_nats for e in run(config_for(text, **knobs), None) if isinstance(e, StepsDone)]
        for knobs in ({}, {"train.monitor": "off"})
    ]
    assert losses[0] == losses[1]


def test_a_threshold_lets_layers_scan_in_float64_and_counts_them(
    text: Path, tmp_path: Path
) -> None:
    config = config_for(text, **{"train.precision_upgrade": 1.0001})
    seen = [e.metrics for e in run(config, tmp_path) if isinstance(e, EvalDone)]
    assert [said["stability/precision_upgrades"] for said in seen] == [2.0, 2.0]
    progress = read(tmp_path / FOLDER / NAME)["progress"]
    assert progress["precise_mixers"] == ["blocks.0.mixer", "blocks.1.mixer"]
    (tmp_path / "config.json").write_text(json.dumps({"config": flatten(config)}))
    resumed, _ = open_checkpoint(tmp_path)
    assert all(mixer.in_float64 for mixer in mixers(resumed.model))
    high = config_for(text, **{"train.precision_upgrade": 1e9})
    seen = [e.metrics for e in run(high, None) if isinstance(e, EvalDone)]
    assert [said["stability/precision_upgrades"] for said in seen] == [0.0, 0.0]


def test_a_mixer_that_scans_in_float64_says_what_one_in_float64_says() -> None:
    single = tiny_model("bk", dtype=torch.float32).blocks[0].mixer
    nn.init.normal_(single.potential.weight, std=0.7)
    nn.init.constant_(single.raw_eta, -9.0)
    double = copy.deepcopy(single).double()
    given = torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(0))
    expected = double(given.double(), None).detach()

    def error() -> float:
        said = single(given, None).detach()
        assert said.dtype == torch.float32
        return float((said - expected).abs().max() / expected.abs().max())

    before = error()
    single.in_float64 = True
    assert error() <= 5e-6 < 2e-5 < before
    torch.autograd.backward(single(given, None).sum())
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in single.parameters())


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (
            {"model.mixer": "attention", "model.n_values": None},
            r"monitor=birman_schwinger does nothing in a model with mixer=attention",
        ),
        ({"train.monitor": "off", "train.precision_upgrade": 9.0}, r"set train\.monitor=birman"),
        ({"train.precision": "float64", "train.precision_upgrade": 9.0}, r"precision=float64"),
        ({"train.precision_upgrade": 1.0}, r"allowed: 1 < precision_upgrade"),
    ],
)
def test_what_would_do_nothing_is_refused(knobs: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build({**SMALL, **knobs})


def test_a_rival_with_another_mixer_is_not_watched() -> None:
    rival = acting({**SMALL, "model.mixer": "attention", "train.precision_upgrade": 9.0})
    assert build(rival).train.monitor == "off"


def test_bins_of_a_scattering_router_are_set_before_the_first_step(text: Path) -> None:
    config = config_for(text, **{"model.n_experts": 4, "model.router": "scattering"})
    routers = [
        part.router.edges
        for part in compose(config, prepare(config.data, 16), None).model.modules()
        if hasattr(part, "router")
    ]
    uniform = torch.linspace(0, math.pi, 5)[1:-1]
    assert len(routers) == 2
    assert all((edges - uniform).abs().max() > 0.01 for edges in routers)


def _events(team: Team, config: TrialConfig) -> list[Event]:
    return list(run(config, None, team=team))


SCATTERED = {"model.n_experts": 4, "model.router": "scattering", "train.precision": "float64"}


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [{"train.precision_upgrade": 1.0001}, SCATTERED])
def test_two_processes_see_and_decide_as_one(knobs: Any, text: Path, tmp_path: Path) -> None:
    """In float64 where experts are chosen: a phase near an edge would fall on either side."""
    config = config_for(text, **knobs, **{"model.n_seq": 17})
    teams = in_team(2, tmp_path, _events, config)
    first, second = ([e.metrics for e in events if isinstance(e, EvalDone)] for events in teams)
    assert first == second
    alone = [e.metrics for e in _events(ALONE, config) if isinstance(e, EvalDone)]
    allowed = 1e-9 if knobs is SCATTERED else 1e-3
    for seen, expected in zip(first, alone, strict=True):
        assert seen == pytest.approx(expected, rel=allowed)
    assert len(alone) == 2
