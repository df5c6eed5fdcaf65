"""Recorded passes against what they stand for: rows really cut, thresholds really evaluated.

Letters: E windows, N sites, V vocabulary, K lengths.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, random_tokens, steer, tiny_config, tiny_model
from torch import Tensor, nn

from bkray.errors import DataError
from bkray.nn.act import ActDepth
from bkray.nn.build import built_in
from bkray.nn.exits import ExitDepth
from bkray.nn.length import LearnedLength
from bkray.nn.lm import LanguageModel, Prediction
from bkray.train.evaluate import evaluate
from bkray.train.frontier import StopFrontier, StopPoint, estimate, length_frontier, stop_frontier
from bkray.train.recorded import (
    Cuts,
    Windows,
    beyond_of,
    candidates_of,
    cut_losses,
)
from bkray.train.step import token_loss_nats
from bkray.train.stops import recorded_stops, scored_at_each

SITES, ROWS = 16, 6
DEPTHS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dropout": {"dropout": 0.5},
    "act": {"depth": "act", "act_threshold": 0.8},
    "exit": {"depth": "exit", "exit_threshold": 0.3},
    "act_exit": {"depth": "act_exit", "act_threshold": 0.8, "exit_threshold": 0.3},
    "hourglass": {"multiscale": True},
    "sparsity": {"sparsity": "learned"},
}


def windows(seed: int = 0) -> Windows:
    tokens = random_tokens(ROWS, SITES + 1, seed=seed)
    plain = torch.autocast("cpu", torch.bfloat16, enabled=False)
    return Windows(tokens[:, :-1], tokens[:, 1:], batch_size=4, autocast=plain)


def learned(**knobs: Any) -> LearnedLength:
    torch.manual_seed(1)
    config = tiny_config(length="learned", length_bins=4, **knobs).model
    model = built_in(config, VOCABULARY).double()
    assert isinstance(model, LearnedLength)
    nn.init.normal_(model.model.head.weight)  # answers that differ
    return model


def mean_loss(logits_BNV: Tensor, text: Windows) -> Tensor:
    return token_loss_nats(Prediction(logits_BNV), text.targets_EN).mean(1)


@torch.no_grad()
def really_cut(model: LearnedLength, text: Windows, n_sites: int) -> Tensor:
    """Return each window's loss of an evaluation in which every row is cut at ``n_sites``."""
    predictor = model.predictor
    bins, bias = predictor.bins, predictor.down.bias.clone()
    predictor.bins = (bins[0], n_sites, *bins[2:])
    predictor.down.bias.copy_(torch.tensor([0.0, 1e6, 0.0, 0.0]))
    said: Prediction = model.eval()(text.inputs_EN)
    assert said.lengths is not None
    assert said.lengths.computed_B.tolist() == [n_sites] * ROWS
    predictor.bins = bins
    predictor.down.bias.copy_(bias)
    return mean_loss(said.logits_BNV, text)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("beyond", ["repeat", "shallow", "copy"])
def test_the_table_of_a_learned_length_is_that_of_really_cut_rows(beyond: str, depth: str) -> None:
    model, text = learned(length_beyond=beyond, **DEPTHS[depth]), windows()
    candidates = candidates_of(model, SITES)
    assert candidates == tuple(range(4, 17))  # none shorter than what the predictor reads
    cuts = cut_losses(model, text, candidates)
    assert beyond_of(model) == beyond
    for column, n_sites in enumerate(cuts.lengths):
        gap = (cuts.table_EK[:, column] - really_cut(model, text, n_sites)).abs().max()
        assert gap < 1e-10, n_sites
    assert cuts.table_EK[:, 0].sub(cuts.table_EK[:, -1]).abs().min() > 1e-6


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_table_of_a_fixed_length_repeats_the_last_output(depth: str) -> None:
    model, text = tiny_model(**DEPTHS[depth]), windows()
    cuts = cut_losses(model, text, candidates_of(model, SITES))
    assert cuts.lengths == tuple(range(1, 17))
    assert (beyond_of(model), cuts.own_bins, cuts.chosen_E) == ("repeat", (), None)
    model.eval()
    for column, n_sites in enumerate(cuts.lengths):
        with torch.no_grad():
            logits = model(text.inputs_EN[:, :n_sites]).logits_BNV
        repeated = logits[:, -1:].expand(-1, SITES - n_sites, -1)
        plain = mean_loss(torch.cat([logits, repeated], dim=1), text)
        assert (cuts.table_EK[:, column] - plain).abs().max() < 1e-10, n_sites


def test_the_predictors_choice_is_what_an_evaluation_gives() -> None:
    model, text = learned(length_train_cut=0.5), windows()
    cuts = cut_losses(model, text, candidates_of(model, SITES))
    found = length_frontier(cuts, candidates_of(model, SITES), (0.1,), "copy").predicted
    assert found is not None
    model.eval()
    with torch.no_grad():
        said: Prediction = model(text.inputs_EN)
    assert said.lengths is not None
    assert found.lengths == (4, 8, 12, 16)
    assert found.mean_length == float(said.lengths.computed_B.double().mean())
    assert found.loss_nats == pytest.approx(float(mean_loss(said.logits_BNV, text).mean()), 1e-12)
    assert found.speedup_estimate == SITES / found.mean_length


def test_a_recorded_pass_leaves_mode_knobs_and_random_numbers_as_they_were() -> None:
    model, text = learned(length_train_cut=0.5, dropout=0.5, **DEPTHS["exit"]).train(), windows()
    assert isinstance(model.model.depth, ExitDepth)
    before = torch.get_rng_state()
    cut_losses(model, text, (8, 16))
    recorded_stops(model.model, model.model.depth, text)
    scored_at_each([0.5], model.model, model.model.depth, text)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(part.training for part in model.modules())
    assert (model.train_cut, model.model.depth.threshold) == (0.5, 0.3)


def test_every_point_is_its_bins_on_the_table() -> None:
    table_EK = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cuts = Cuts(table_EK, (4, 8, 12, 16), (), None, 3.0)
    found = length_frontier(cuts, (4, 8, 12, 16), (0.0, 50.0), "repeat")
    assert [(p.price_nats, len(p.lengths)) for p in found.points] == [
        *((0.0, 1), (0.0, 2), (0.0, 4)),
        *((50.0, 1), (50.0, 2), (50.0, 4)),
    ]
    assert found.loss_nats == tuple(table_EK.mean(0).tolist())
    free, dear = found.points[2], found.points[5]
    assert free.loss_nats == pytest.approx(float(table_EK.amin(1).mean()))
    assert (dear.mean_length, dear.speedup_estimate) == (4.0, 4.0)
    assert dear.ppl == pytest.approx(float(table_EK[:, 0].mean().exp()))


def halting(bias: float | None = None) -> tuple[LanguageModel, ActDepth]:
    """Return ACT that halts with ``bias`` at every token, or as the tokens will have it."""
    model = tiny_model(depth="act", act_threshold=0.9)
    assert isinstance(model.depth, ActDepth)
    if bias is None:
        steer(model)
    else:
        for unit in model.depth.halting:
            nn.init.constant_(unit.down.bias, bias)  # type: ignore[union-attr, arg-type]
    return model, model.depth


def leaving(rule: str = "confidence", heads: str = "own") -> tuple[LanguageModel, ExitDepth]:
    model = tiny_model(depth="exit", exit_rule=rule, exit_threshold=0.5, exit_heads=heads)
    assert isinstance(model.depth, ExitDepth)
    steer(model)
    return model, model.depth


def test_an_estimate_is_exact_where_nobody_stops_before_the_last_layer() -> None:
    model, depth = halting(bias=-2.0)  # two layers add up to 0.24
    depth.threshold = 0.1  # what it was trained at plays no part in what is recorded
    recorded = recorded_stops(model, depth, windows())
    (point,) = estimate(recorded, [0.9])
    assert point.avg_layers == 3
    layers, loss_nats = scored_at(0.9, model, depth, windows())
    assert layers == 3
    assert abs(point.loss_nats - loss_nats) < 1e-10


def test_an_estimate_is_exact_where_all_stop_together() -> None:
    model, depth = halting(bias=0.0)  # 0.5 per layer: nobody misses a token that stopped
    recorded = recorded_stops(model, depth, windows())
    for threshold, n_layers in ((0.4, 1), (0.6, 2), (1.0, 2)):
        (point,) = estimate(recorded, [threshold])
        assert point.avg_layers == n_layers
        layers, loss_nats = scored_at(threshold, model, depth, windows())
        assert layers == n_layers
        assert abs(point.loss_nats - loss_nats) < 1e-10


def scored_at(
    threshold: float, model: LanguageModel, depth: ActDepth | ExitDepth, text: Windows
) -> tuple[float, float]:
    """A plain evaluation at a threshold: what `scored_at_each` stands for."""
    trained, depth.threshold = depth.threshold, threshold
    score = evaluate(
        model, *text[:2], batch_size=text.batch_size, autocast=torch.autocast("cpu", enabled=False)
    )
    depth.threshold = trained
    kinds = [f"{kind}/avg_layers_executed" for kind in ("act", "depth")]
    layers = [score.metrics[name] for name in kinds if name in score.metrics]
    return (layers or [len(model.blocks)])[0], score.loss_nats


@pytest.mark.parametrize("make", [halting, leaving])
def test_thresholds_that_share_the_first_layer_score_as_alone(
    make: Callable[[], tuple[LanguageModel, ActDepth | ExitDepth]],
) -> None:
    model, depth = make()
    trained, text = depth.threshold, windows()
    thresholds = [0.05, 0.3, 0.55, 0.8, 1.0]
    found = scored_at_each(thresholds, model, depth, text)
    assert depth.threshold == trained
    assert len({layers for layers, _ in found}) > 2
    for threshold, (layers, loss_nats) in zip(thresholds, found, strict=True):
        alone = scored_at(threshold, model, depth, text)
        assert abs(layers - alone[0]) < 1e-10
        assert abs(loss_nats - alone[1]) < 1e-10


def frontier_of(model: LanguageModel, depth: ActDepth | ExitDepth) -> StopFrontier:
    text = windows()
    trained = StopPoint(depth.threshold, *scored_at(depth.threshold, model, depth, text))
    return stop_frontier(model, depth, text, trained)


def test_survivors_open_a_gap_which_is_reported() -> None:
    found = frontier_of(*halting())
    assert (found.knob, found.trained, found.n_layers) == ("model.act_threshold", 0.9, 3)
    assert [point.threshold for point in found.estimate] == [i / 200 for i in range(1, 201)]
    assert len(found.checked) == 8
    eighths = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.9, 1.0]  # the nearest one gave way
    assert [one.evaluated.threshold for one in found.checked] == eighths
    assert len({point.avg_layers for point in found.estimate}) > 5
    for one in found.checked:
        assert one.evaluated.threshold == one.estimated.threshold
        assert one.gap_nats == one.evaluated.loss_nats - one.estimated.loss_nats
    assert found.largest_gap_nats == max(abs(one.gap_nats) for one in found.checked) > 1e-6


@pytest.mark.parametrize("heads", ["own", "shared"])
@pytest.mark.parametrize("rule", ["confidence", "entropy"])
def test_the_curve_of_an_exit_starts_and_ends_exactly(rule: str, heads: str) -> None:
    model, depth = leaving(rule, heads)
    recorded = recorded_stops(model, depth, windows())
    at_once, never = (1e-9, 1.0) if rule == "confidence" else (10.0, 0.0)
    sign = 1.0 if rule == "confidence" else -1.0
    for threshold, n_layers in ((at_once, 1), (never, 3)):
        (point,) = estimate(recorded, [threshold], sign)
        layers, loss_nats = scored_at(threshold, model, depth, windows())
        assert point.avg_layers == layers == n_layers
        assert abs(point.loss_nats - loss_nats) < 1e-10
    found = frontier_of(model, depth)
    means = [point.avg_layers for point in found.estimate]
    assert len(found.estimate) == 200
    assert len(found.checked) == 8
    assert min(means) < max(means)
    assert means == sorted(means, reverse=rule == "entropy")
    # Who leaves the first layer is the same in the estimate and in truth.
    first = [one for one in found.checked if one.estimated.avg_layers == 1]
    assert all(one.evaluated.avg_layers == 1 and abs(one.gap_nats) < 1e-10 for one in first)


def test_a_loss_that_is_not_finite_is_reported() -> None:
    model, depth = halting()
    nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(DataError, match="loss is not finite on the validation windows"):
        cut_losses(model, windows(), (8, 16))
    with pytest.raises(DataError, match="loss is not finite on the validation windows"):
        recorded_stops(model, depth, windows())
