"""Rows in chunks: the gradients and numbers of whole rows, whatever the chunk.

Letters: B batch, N sites.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import in_team
from tiny import random_tokens, steer, tiny_config, tiny_model, uneven_rows
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.nn.lm import LanguageModel
from bkray.train.evaluate import evaluate
from bkray.train.guard import Guard
from bkray.train.optim import adamw, set_lr
from bkray.train.probe import Probe
from bkray.train.step import Step, TokenTally, optimizer_step
from bkray.train.team import ALONE, Team
from bkray.train.watch import Blocks

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)
CHUNKS = (1, 3, 8, 15, 16)
EXPERTS = {"n_experts": 4, "top_k": 2, "balance_weight": 0.3}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "experts": EXPERTS,
    "act": {"depth": "act", "act_lambda": 0.1},
    "act with experts": {"depth": "act", "act_lambda": 0.1, **EXPERTS},
    "exit": {"depth": "exit"},
    "own exit": {"depth": "exit", "exit_heads": "own", "exit_rule": "entropy"},
    "sparse": {"sparsity": "learned", "sparsity_lambda": 0.2},
}
MIXERS = ("bk", "linear_recurrence", "mamba")


def model_of(kind: str, mixer: str) -> LanguageModel:
    model = tiny_model(mixer, **KINDS[kind])
    if kind not in ("dense", "experts"):
        steer(model)
    return model


def step(
    model: LanguageModel,
    kind: str,
    tokens: Tensor,
    chunk: int | None,
    *,
    accumulation: int = 1,
    load: Tensor | None = None,
    trained: nn.Module | None = None,
    autocast: torch.autocast = OFF,
    team: Team = ALONE,
) -> Step:
    config = tiny_config(**KINDS[kind])
    optimizer = adamw(model, config.optimizer)
    set_lr(optimizer, 1e-3)
    rows = torch.split(tokens, len(tokens) // accumulation)
    return optimizer_step(
        trained or model,
        optimizer,
        [(part[:, :-1], part[:, 1:]) for part in rows],
        TokenTally(config.model, load, chunk),
        clip_norm=1e9,
        autocast=autocast,
        blocks=Blocks(model),
        guard=Guard(torch.device("cpu"), None, 0),
        team=team,
    )


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("mixer", "kind"), list(itertools.product(MIXERS, KINDS)))
def test_gradients_and_numbers_are_those_of_whole_rows(mixer: str, kind: str) -> None:
    tokens = uneven_rows(17)
    load = torch.rand(3, 4) if "experts" in kind else None
    whole = model_of(kind, mixer)
    expected = step(whole, kind, tokens, None, load=load)
    for chunk in CHUNKS:
        model = model_of(kind, mixer)
        said = step(model, kind, tokens, chunk, load=load)
        assert said.numbers.keys() == expected.numbers.keys()
        for name, value in said.numbers.items():
            assert (value.double() - expected.numbers[name].double()).abs() <= 1e-10, name
        for name, gradient in gradients(model).items():
            error = (gradient - whole.get_parameter(name).grad).abs().max()
            assert error <= 1e-10, (chunk, name)
        assert (said.block_norms_K - expected.block_norms_K).abs().max() <= 1e-10
        if expected.load_LE is not None:
            assert torch.equal(said.load_LE, expected.load_LE)


@pytest.mark.parametrize("kind", ["dense", "act with experts"])
def test_parts_of_a_batch_come_in_chunks_too(kind: str) -> None:
    tokens = uneven_rows(17)
    whole, parted = model_of(kind, "bk"), model_of(kind, "bk")
    step(whole, kind, tokens, None)
    step(parted, kind, tokens, 5, accumulation=2)
    for name, gradient in gradients(parted).items():
        assert (gradient - whole.get_parameter(name).grad).abs().max() <= 1e-10, name


def test_a_chunk_hears_of_the_first_one_in_its_gradient() -> None:
    """Without what is handed back over the borders the embedding would learn something else."""
    model, tokens = model_of("dense", "bk"), random_tokens(2, 17)
    step(model, "dense", tokens, 4)
    alone = model_of("dense", "bk")
    chunks = [tokens[:, i : i + 5] for i in range(0, 16, 4)]
    step(alone, "dense", torch.cat(chunks), None)
    error = (model.embedding.weight.grad - alone.embedding.weight.grad).abs().max()
    assert error > 1e-4


def test_no_pass_sees_more_than_a_chunk() -> None:
    model, tokens = model_of("exit", "bk"), random_tokens(2, 17)
    sites: list[int] = []
    model.embedding.register_forward_pre_hook(lambda _, args: sites.append(args[0].shape[1]))
    rows: list[int] = []
    model.head.register_forward_pre_hook(lambda _, args: rows.append(args[0][..., 0].numel()))
    step(model, "exit", tokens, 6)
    assert sites == [6, 6, 4, 6, 6]
    assert max(rows) == 12
    sites.clear()
    evaluate(model, tokens[:, :-1], tokens[:, 1:], batch_size=2, autocast=OFF, chunk=6)
    assert sites == [6, 6, 4]


@pytest.mark.parametrize("mixer", MIXERS)
def test_bf16_autocast_trains_in_chunks(mixer: str) -> None:
    """The pass without gradients comes first: its weights in bf16 must not stay for the next."""
    tokens, bf16 = random_tokens(4, 17), torch.autocast("cpu", torch.bfloat16)
    whole, parted = model_of("dense", mixer).float(), model_of("dense", mixer).float()
    step(whole, "dense", tokens, None, autocast=bf16)
    step(parted, "dense", tokens, 5, autocast=bf16)
    for name, gradient in gradients(parted).items():
        expected = whole.get_parameter(name).grad
        assert (gradient - expected).norm() <= 0.05 * expected.norm(), name


def test_a_nan_is_told() -> None:
    model = model_of("dense", "bk")
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    tokens = random_tokens(2, 17)
    tokens[0, 2] = 3
    said = step(model, "dense", tokens, 4)
    assert math.isnan(said.numbers["loss_nats"])
    assert math.isnan(said.numbers["grad_norm"])
    assert bool(said.numbers["masked"])


@pytest.mark.parametrize("kind", ["dense", "act", "exit", "sparse"])
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_an_evaluation_in_chunks_says_the_same(kind: str, chunk: int) -> None:
    model, tokens = model_of(kind, "linear_recurrence"), uneven_rows(17)
    sides = tokens[:, :-1], tokens[:, 1:]
    whole = evaluate(model, *sides, batch_size=3, autocast=OFF, kinds=("a", "b"))
    said = evaluate(model, *sides, batch_size=3, autocast=OFF, kinds=("a", "b"), chunk=chunk)
    assert said.loss_nats == pytest.approx(whole.loss_nats, abs=1e-10)
    assert said.metrics == pytest.approx(whole.metrics, abs=1e-10)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mixer": "attention"}, r"train.chunk=4 needs a mixer with a state"),
    ({"multiscale": True}, r"needs model.multiscale=false"),
    ({"mixer_scale": 2}, r"needs model.mixer_scale=1"),
    ({"length": "learned"}, r"needs model.length=fixed"),
    ({"dropout": 0.1}, r"needs model.dropout=0, got 0.1"),
    ({"n_seq": 4}, r"does nothing with model.n_seq=4"),
]


@pytest.mark.parametrize(("knobs", "message"), REFUSED, ids=lambda x: str(x)[:24])
def test_what_cannot_come_in_chunks_is_refused(knobs: dict[str, Any], message: str) -> None:
    mixer = knobs.get("mixer", "bk")
    others = {name: value for name, value in knobs.items() if name != "mixer"}
    with pytest.raises(ConfigError, match=message):
        tiny_config(mixer, **{"train.chunk": 4, **others})


@pytest.mark.parametrize("kind", ["dense", "act"])
@pytest.mark.parametrize(("row", "position"), [(3, 11), (2, 0), (3, 15)])
def test_the_token_that_broke_is_found_in_its_part_and_chunk(
    kind: str, row: int, position: int
) -> None:
    model = model_of(kind, "linear_recurrence")
    with torch.no_grad():
        model.embedding.weight[9] = torch.nan
    tokens = torch.where(random_tokens(4, 17) == 9, 8, random_tokens(4, 17))
    tokens[row, position] = 9
    with Probe(model, backward=True) as probe:
        step(model, kind, tokens, 5, accumulation=2)
    assert probe.faults[0].module == "embedding"
    found = next(fault for fault in probe.faults if fault.has_sites)
    spot = found.spot
    assert spot is not None
    assert (found.part, spot.row, spot.position) == (1, row - 2, position)
    assert spot.tokens[position - spot.first] == 9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "act with experts"])
def test_two_processes_train_in_chunks_as_one(kind: str, tmp_path: Path) -> None:
    tokens = uneven_rows(17)
    expected = _team_step(ALONE, kind, tokens, None)
    for own in in_team(2, tmp_path, _team_step, kind, tokens, 5):
        for name, weight in expected.items():
            torch.testing.assert_close(own[name], weight, rtol=1e-9, atol=1e-12)


def _team_step(team: Team, kind: str, tokens: Tensor, chunk: int | None) -> dict[str, Tensor]:
    model = model_of(kind, "linear_recurrence")
    trained = team.synchronised(model, may_skip=kind != "dense")
    own = tokens[team.share(len(tokens))]
    load = None
    for _ in range(2):
        load = step(model, kind, own, chunk, load=load, trained=trained, team=team).load_LE
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}
