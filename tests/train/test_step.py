"""One optimizer step: parts of a batch add up, losses are what they say, norms are unclipped.

Letters: B batch, N sites, V vocabulary, L layers with experts, E experts.
"""

import copy
import math
from typing import Any

import pytest
import torch
from tiny import GO, STOP, VOCABULARY, random_tokens, steer, tiny_config, tiny_model, uneven_rows
from torch import Tensor, nn

from bkray.config import ModelConfig
from bkray.nn.lm import LanguageModel, Prediction
from bkray.nn.moe import Routing
from bkray.train.guard import Guard
from bkray.train.optim import adamw, set_lr
from bkray.train.step import Numbers, TokenTally, losses, optimizer_step, token_loss_nats
from bkray.train.watch import Blocks

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "experts": {"n_experts": 4, "top_k": 2, "balance_weight": 0.3},
    "act": {"depth": "act", "act_lambda": 0.1},
    "act with experts": {
        "depth": "act",
        "act_lambda": 0.1,
        "n_experts": 3,
        "top_k": 1,
        "balance_weight": 0.3,
    },
}


def one_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    knobs: ModelConfig,
    batch: Tensor,
    *,
    accumulation: int = 1,
    load: Tensor | None = None,
    clip_norm: float = 0.5,
) -> tuple[Numbers, Tensor | None]:
    """Train on every token but the first as the target of the one before."""
    rows = torch.split(batch, len(batch) // accumulation)
    parts = [(part[:, :-1], part[:, 1:]) for part in rows]
    said = optimizer_step(
        model,
        optimizer,
        parts,
        TokenTally(knobs, load),
        clip_norm=clip_norm,
        autocast=OFF,
        blocks=Blocks(model),
        guard=Guard(torch.device("cpu"), None, 0),
    )
    return said.numbers, said.load_LE


def trained(
    kind: str, accumulation: int, batches: list[Tensor], mixer: str = "linear_recurrence"
) -> tuple[LanguageModel, list[dict[str, float]], dict[str, Tensor]]:
    """Return model, numbers per step and last gradients after a step on each batch."""
    config = tiny_config(mixer, **KINDS[kind])
    model = tiny_model(mixer, **KINDS[kind])
    if "act" in kind:
        steer(model)
    optimizer = adamw(model, config.optimizer)
    set_lr(optimizer, 1e-3)
    load, series = None, []
    for batch in batches:
        numbers, load = one_step(
            model, optimizer, config.model, batch, accumulation=accumulation, load=load
        )
        series.append({name: float(value) for name, value in numbers.items()})
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return model, series, gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_neither_losses_nor_weights(kind: str, accumulation: int) -> None:
    """Row 0 stops at once and row 1 never: parts of a batch run different numbers of layers."""
    batches = [uneven_rows(17).roll(shift, 0) for shift in range(5)]
    whole, expected, gradients = trained(kind, 1, batches)
    parted, said, summed = trained(kind, accumulation, batches)
    for step, other in zip(said, expected, strict=True):
        assert step == pytest.approx(other, abs=1e-10)
    for name, parameter in parted.named_parameters():
        assert (parameter - whole.get_parameter(name)).abs().max() <= 1e-10, name
        assert (summed[name] - gradients[name]).abs().max() <= 1e-10, name


@pytest.mark.parametrize("kind", ["act", "act with experts"])
def test_the_number_of_layers_run_may_change_from_step_to_step(kind: str) -> None:
    """Shallow and deep batches in turn: the load of layers that were not reached stays known."""
    shallow, deep = torch.full((2, 9), STOP), torch.full((2, 9), GO)
    _, series, _ = trained(kind, 1, [shallow, deep, shallow, deep, torch.cat([shallow, deep])])
    layers = [numbers["act/avg_layers_executed"] for numbers in series]
    assert layers == [1.0, 3.0, 1.0, 3.0, 2.0]
    assert all(math.isfinite(value) for numbers in series for value in numbers.values())


def test_the_gradient_norm_is_taken_before_clipping() -> None:
    batch = random_tokens(4, 17)
    _, series, gradients = trained("dense", 1, [batch])
    model, config = tiny_model(), tiny_config()
    prediction = model(batch[:, :-1])
    torch.autograd.backward(losses(prediction, batch[:, 1:], config.model, None)["total"])
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))  # type: ignore
    assert norm > 0.5, "there is something to clip"
    assert series[0]["grad_norm"] == pytest.approx(norm, rel=1e-12)
    clipped = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
    assert clipped == pytest.approx(0.5, rel=1e-4)


def test_a_gradient_below_the_limit_is_left_as_it_is() -> None:
    model, config, batch = tiny_model(), tiny_config(), random_tokens(4, 17)
    optimizer = adamw(model, config.optimizer)
    numbers, _ = one_step(model, optimizer, config.model, batch, clip_norm=1e6)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))  # type: ignore
    assert norm == pytest.approx(float(numbers["grad_norm"]), rel=1e-12)


def test_old_gradients_do_not_enter_the_next_step() -> None:
    batch = random_tokens(4, 17)
    model, config = tiny_model(), tiny_config()
    optimizer = adamw(model, config.optimizer)
    set_lr(optimizer, 0.0)
    norms = []
    for _ in range(3):
        numbers, _ = one_step(model, optimizer, config.model, batch)
        norms.append(float(numbers["grad_norm"]))
    assert norms[0] == norms[1] == norms[2]


def test_a_layer_that_no_token_reaches_keeps_decaying() -> None:
    batch = torch.full((2, 9), STOP)
    before = tiny_model(depth="act").blocks[2].mixer.out.weight.detach().clone()
    model, _, gradients = trained("act", 1, [batch])
    assert not gradients["blocks.2.mixer.out.weight"].any()
    after = model.blocks[2].mixer.out.weight
    assert (after - before * (1 - 1e-3 * 0.1)).abs().max() <= 1e-12


def test_steps_make_the_loss_fall() -> None:
    batch = random_tokens(4, 17)
    for kind in KINDS:
        series = trained(kind, 1, [batch] * 12)[1]
        assert series[-1]["loss_nats"] < series[0]["loss_nats"] - 0.05, kind


def some_prediction(**parts: Any) -> tuple[Prediction, Tensor]:
    draw = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 5, VOCABULARY, dtype=torch.float64, generator=draw)
    return Prediction(logits, **parts), random_tokens(2, 5)


def test_the_loss_is_the_mean_surprise_per_token() -> None:
    prediction, targets = some_prediction()
    by_hand = [
        -math.log(float(logits.softmax(-1)[target]))
        for logits, target in zip(
            prediction.logits_BNV.flatten(0, 1), targets.flatten(), strict=True
        )
    ]
    said = losses(prediction, targets, ModelConfig(), None)
    assert said["loss_nats"].item() == pytest.approx(sum(by_hand) / 10, rel=1e-12)
    assert said["total"] is said["loss_nats"]
    assert token_loss_nats(prediction, targets).shape == (2, 5)


def test_the_loss_of_half_precision_logits_is_taken_in_float32() -> None:
    prediction, targets = some_prediction()
    half = Prediction(prediction.logits_BNV.bfloat16())
    said = token_loss_nats(half, targets)
    assert said.dtype == torch.float32
    expected = token_loss_nats(Prediction(half.logits_BNV.double()), targets)
    assert (said - expected).abs().max() <= 1e-6


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    uniform = Prediction(torch.zeros(2, 5, VOCABULARY))
    said = losses(uniform, random_tokens(2, 5), ModelConfig(), None)["loss_nats"].item()
    assert said == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_pondering_is_layers_plus_remainder_times_its_price() -> None:
    layers = torch.tensor([[1, 2, 3, 3, 3]] * 2)
    remainder = torch.tensor([[1.0, 0.5, 0.25, 0.25, 0.5]] * 2, dtype=torch.float64)
    prediction, targets = some_prediction(layers_BN=layers, remainder_BN=remainder)
    said = losses(prediction, targets, ModelConfig(depth="act", act_lambda=0.5), None)
    assert said["act/ponder_cost"].item() == pytest.approx(2.4 + 0.5)
    assert said["act/avg_layers_executed"].item() == pytest.approx(2.4)
    assert said["act/share_stopped_at_layer_1"].item() == pytest.approx(0.2)
    assert (said["total"] - said["loss_nats"]).item() == pytest.approx(0.5 * 2.9)


def routing_of(probability_TE: Tensor) -> Routing:
    chosen = probability_TE.argmax(-1).bincount(minlength=probability_TE.shape[1])
    return Routing(chosen, probability_TE.sum(0))


@pytest.mark.parametrize(
    ("probability", "load", "expected"),
    [
        ([0.25] * 4, None, 1.0),
        ([0.25] * 4, [0.25] * 4, 1.0),
        ([1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], 4.0),
        ([0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], 0.0),
        ([0.5, 0.5, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0], 1.5),
    ],
)
def test_balance_is_1_for_an_even_router_and_their_number_if_one_expert_takes_all(
    probability: list[float], load: list[float] | None, expected: float
) -> None:
    routing = routing_of(torch.tensor([probability] * 10, dtype=torch.float64))
    prediction, targets = some_prediction(routing=(routing, routing))
    load_LE = None if load is None else torch.tensor([load, load], dtype=torch.float64)
    knobs = ModelConfig(n_experts=4, balance_weight=0.5)
    said = losses(prediction, targets, knobs, load_LE)
    assert said["moe/balance"].item() == pytest.approx(expected)
    assert (said["total"] - said["loss_nats"]).item() == pytest.approx(0.5 * expected)


def test_the_balance_term_evens_a_crowded_load() -> None:
    batch, crowding = random_tokens(8, 17), []
    for weight in (0.0, 0.3):
        config = tiny_config(n_experts=4, balance_weight=weight)
        model = tiny_model(n_experts=4, balance_weight=weight)
        with torch.no_grad():
            for block in model.blocks:
                block.feed_forward.router.weight *= 0.1
                block.feed_forward.router.weight[0] += 0.3  # most tokens start at expert 0
        optimizer, load, shares = adamw(model, config.optimizer), None, []
        set_lr(optimizer, 3e-3)
        for _ in range(40):
            _, load = one_step(model, optimizer, config.model, batch, load=load)
            assert load is not None
            shares.append(float(load.max()))
        assert shares[0] > 0.7
        crowding.append(sum(shares[20:]) / 20)
    assert crowding[1] < crowding[0] - 0.05


def test_the_load_says_the_share_of_each_expert() -> None:
    config, model = tiny_config(n_experts=3, top_k=2), tiny_model(n_experts=3, top_k=2)
    twin, batch = copy.deepcopy(model), random_tokens(4, 17)
    optimizer = adamw(model, config.optimizer)
    _, load = one_step(model, optimizer, config.model, batch, accumulation=2)
    counts = torch.stack([routed.count_E for routed in twin(batch[:, :-1]).routing])
    assert load is not None
    assert (load - counts / 128).abs().max() <= 1e-6


def test_a_nan_weight_gives_a_nan_loss_and_norm() -> None:
    model, config, batch = tiny_model(), tiny_config(), random_tokens(2, 9)
    nn.init.constant_(model.norm.weight, math.nan)
    numbers, _ = one_step(model, adamw(model, config.optimizer), config.model, batch)
    assert math.isnan(numbers["loss_nats"])
    assert math.isnan(numbers["grad_norm"])
