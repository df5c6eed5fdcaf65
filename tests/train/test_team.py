"""Several processes train as one does."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import in_team
from tiny import STOP, random_tokens, steer, tiny_config, tiny_model
from torch import Tensor
from trials import KINDS, numbers, of, short_config

from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.events import EvalDone, Event, StepsDone, TrialEnded, TrialStarted
from bkray.train.checkpoint import NAME
from bkray.train.guard import Guard
from bkray.train.optim import adamw
from bkray.train.step import TokenTally, optimizer_step
from bkray.train.team import ALONE, Team, check_shares
from bkray.train.watch import Blocks
from bkray.trial import run

SHARED = {
    "train.steps": 20,
    "dropout": 0.0,
    "n_seq": 24,
    "eval_windows": 5,
    "accumulation": 2,
}
EQUAL = 1e-4
"""Largest difference of a loss after 20 steps, in nats: workers add up in another order."""


def test_alone_nothing_is_exchanged() -> None:
    model = torch.nn.Linear(2, 2)
    assert ALONE.leads
    assert ALONE.gather("x") == ["x"]
    assert ALONE.sum(torch.ones(2)).tolist() == [1, 1]
    assert ALONE.synchronised(model, may_skip=True) is model


def test_shares_cover_a_part_once() -> None:
    rows = [row for rank in range(3) for row in range(12)[Team(rank, 3).share(12)]]
    assert rows == list(range(12))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    check_shares(tiny_config(batch_size=12, accumulation=2).train, 3)
    with pytest.raises(ConfigError, match=r"batch_size=8 .* by 3 workers .* multiple of 6"):
        check_shares(tiny_config(batch_size=8, accumulation=2).train, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(kind: str, text: Path, tmp_path: Path) -> None:
    lengths = {"ladder.lengths": "6,12,24", "batch_size": 4} if kind == "ladder" else {}
    config = short_config(text, **{**KINDS[kind], **SHARED, **lengths})
    alone = _events(ALONE, config, tmp_path / "alone")
    first, second = in_team(2, tmp_path, _events, config, tmp_path / "team")
    assert numbers(first) == numbers(second)
    expected, seen = numbers(alone), numbers(first)
    assert seen.keys() == expected.keys()
    for key, value in expected.items():
        is_loss = key[3].endswith("loss_nats")
        near = {"abs": EQUAL, "rel": 0} if is_loss else {"abs": 1e-6, "rel": 0.02}
        assert seen[key] == pytest.approx(value, **near), key
    losses = of(StepsDone, alone)
    assert losses[0].loss_nats[0] - losses[-1].loss_nats[-1] > 1000 * EQUAL  # it learned something
    assert of(TrialStarted, first)[0].trial_id == of(TrialStarted, alone)[0].trial_id


@pytest.mark.slow
def test_a_team_goes_on_from_its_checkpoint(text: Path, tmp_path: Path) -> None:
    config = short_config(text, **{**KINDS["dropout"], "train.steps": 20})
    whole, _ = in_team(2, _new(tmp_path / "a"), _events, config, tmp_path / "whole")
    folder = tmp_path / "parts"
    begun, _ = in_team(2, _new(tmp_path / "b"), _events, config, folder, 10)
    assert of(TrialEnded, begun)[0].outcome == "interrupted"
    assert (folder / "checkpoints" / NAME).exists()
    rest, _ = in_team(2, _new(tmp_path / "c"), _events, config, folder)
    assert of(TrialStarted, rest)[0].step == 10
    assert of(TrialStarted, rest)[0].attempt == 2
    assert {**numbers(begun), **numbers(rest)} == numbers(whole)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["bk", "linear_recurrence"])
def test_a_process_without_a_window_to_validate_on_waits_for_the_others(
    mixer: str, text: Path, tmp_path: Path
) -> None:
    knobs = {"depth": "act", "act_threshold": 0.8, "train.steps": 4, "eval_windows": 1}
    config = short_config(text, mixer, **knobs)
    first, second = in_team(2, tmp_path, _events, config, None)
    alone = _events(ALONE, config, None)
    for events in (first, second):
        (seen,), (expected,) = of(EvalDone, events), of(EvalDone, alone)
        assert seen.loss_nats == pytest.approx(expected.loss_nats, abs=EQUAL)
        assert seen.metrics == pytest.approx(expected.metrics, rel=0.02)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(text: Path, tmp_path: Path) -> None:
    config = short_config(text, **{**KINDS["experts"], "train.steps": 20})
    whole = _events(ALONE, config, tmp_path / "whole")
    in_team(2, _new(tmp_path / "two"), _events, config, tmp_path / "parts", 10)
    rest = _events(ALONE, config, tmp_path / "parts")
    assert of(TrialStarted, rest)[0].step == 10
    expected = of(EvalDone, whole)[-1].loss_nats
    assert of(EvalDone, rest)[-1].loss_nats == pytest.approx(expected, abs=EQUAL)


@pytest.mark.slow
def test_dropout_differs_between_processes(text: Path, tmp_path: Path) -> None:
    draws = in_team(2, tmp_path, _draw, short_config(text, dropout=0.2))
    assert draws[0] != draws[1]


@pytest.mark.slow
@pytest.mark.parametrize("n_experts", [1, 3])
def test_a_process_whose_tokens_all_stop_at_layer_1_keeps_no_one_waiting(
    n_experts: int, tmp_path: Path
) -> None:
    stop_and_go = torch.cat([torch.full((2, 12), STOP), random_tokens(2, 12, seed=3)])
    expected = _steps(ALONE, stop_and_go, n_experts)
    first, second = in_team(2, tmp_path, _steps, stop_and_go, n_experts)
    assert first["layers"] == 1 < second["layers"]
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-9, atol=1e-12)
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    if n_experts > 1:
        torch.testing.assert_close(first["load_LE"], expected["load_LE"])


@pytest.mark.slow
def test_all_processes_end_when_one_of_them_sees_a_nan(text: Path, tmp_path: Path) -> None:
    config = short_config(text, lr=1e30, clip_norm=1e30)
    first, second = in_team(2, tmp_path, _events, config, None)
    for events in (first, second):
        ended = of(TrialEnded, events)[0]
        assert ended.outcome == "diverged"
        assert ended.reason == of(TrialEnded, first)[0].reason
    assert not math.isfinite(sum(of(StepsDone, first)[-1].loss_nats))


def _events(team: Team, config: TrialConfig, folder: Path | None, stop_at: int = 0) -> list[Event]:
    events: list[Event] = []

    def stop() -> tuple[str, str] | None:
        """One process of a team, the last, is told; all of them end at that step."""
        is_told = bool(stop_at) and team.rank == team.size - 1
        reached = is_told and bool(events) and events[-1].step >= stop_at
        return ("interrupted", "told to") if reached else None

    for event in run(config, folder, sweep="a sweep", stop=stop, team=team):
        events.append(event)
    assert of(EvalDone, events) or of(TrialEnded, events)[0].outcome != "ok"
    return events


def _draw(team: Team, config: TrialConfig) -> list[float]:
    for _ in run(config, None, stop=lambda: ("interrupted", ""), team=team):
        pass
    return torch.rand(4).tolist()  # type: ignore[no-any-return]


def _steps(team: Team, tokens_BN: Tensor, n_experts: int) -> dict[str, Any]:
    """Three steps on the same tokens, the rows shared."""
    experts = {"n_experts": n_experts} if n_experts > 1 else {}
    knobs = {"depth": "act", "act_threshold": 0.8, "act_lambda": 0.01, **experts}
    config = tiny_config(**knobs)
    model = tiny_model(**knobs)
    steer(model)
    own_BN = tokens_BN[team.share(len(tokens_BN))]
    trained = team.synchronised(model, may_skip=True)
    optimizer = adamw(model, config.optimizer)
    load_LE = None
    for _ in range(3):
        _, load_LE, _ = optimizer_step(
            trained,
            optimizer,
            [(own_BN, own_BN.roll(1, 1))],
            TokenTally(config.model, load_LE),
            clip_norm=1.0,
            autocast=torch.autocast("cpu", torch.bfloat16, enabled=False),
            blocks=Blocks(model),
            guard=Guard(torch.device("cpu"), None, 0),
            team=team,
        )
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        layers = float(model(own_BN).layers_BN.double().mean())
    return {"weights": weights, "load_LE": load_LE, "layers": layers}


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
