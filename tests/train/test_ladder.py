"""A trial that climbs a ladder of lengths, and trials that stand on one rung each."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from trials import of, play, short_config

from bkray.config import TrialConfig
from bkray.data.shards import prepare
from bkray.events import EvalDone, RungDone, StepsDone, TrialEnded, rows
from bkray.train.ladder import context_worths
from bkray.train.loop import validate
from bkray.train.run import validation_at
from bkray.train.step import token_loss_nats
from bkray.trial import compose

LENGTHS = (4, 8, 16)


def climbing(text: Path, **knobs: Any) -> TrialConfig:
    return short_config(
        text,
        **{
            "ladder.lengths": "4,8,16",
            "mode": "carry",
            "batch_size": 2,
            "train.steps": 31,
            **knobs,
        },
    )


def standing(text: Path, n_seq: int, **knobs: Any) -> TrialConfig:
    """One rung of the same ladder, by itself."""
    times = 16 // n_seq
    return short_config(
        text,
        **{
            "model.n_seq": n_seq,
            "ladder.lengths": n_seq,
            "batch_size": 2 * times,
            "accumulation": times,
            "eval_stretch": 16,
            "eval_windows": 4 * times,
            **knobs,
        },
    )


@pytest.fixture(scope="module")
def climbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("climbed") / "trial"
    return folder, play(climbing(text), folder)


def test_every_length_is_trained_at_and_reported(climbed: tuple[Path, list[Any]]) -> None:
    done = of(RungDone, climbed[1])
    assert [(one.step, one.n_seq, one.diverged) for one in done] == [
        (10, 4, False),
        (20, 8, False),
        (31, 16, False),
    ]
    assert [one.metrics["steps"] for one in done] == [10, 10, 11]
    evaluations = {one.step: one for one in of(EvalDone, climbed[1])}
    for one in done:
        assert one.metrics["loss"] == evaluations[one.step].loss_nats
    assert of(StepsDone, climbed[1])[-1].tokens == 31 * 32
    names = {row.name for one in done for row in rows(one)}
    assert {"seq8/loss", "seq8/gradient_norm", "seq16/memory_gb", "seq4/diverged"} <= names


def test_the_gradient_norms_of_a_rung_are_its_own(climbed: tuple[Path, list[Any]]) -> None:
    norms = [norm for window in of(StepsDone, climbed[1]) for norm in window.grad_norm]
    for one, (first, last) in zip(
        of(RungDone, climbed[1]), ((0, 10), (10, 20), (20, 31)), strict=True
    ):
        own = torch.tensor(norms[first:last], dtype=torch.float64)
        assert one.metrics["gradient_norm"] == pytest.approx(float(own.mean()))
        assert one.metrics["gradient_norm_std"] == pytest.approx(float(own.std(correction=0)))


def test_checkpoints_are_left_in_the_guides_form(climbed: tuple[Path, list[Any]]) -> None:
    folder = climbed[0] / "checkpoints"
    for n_seq, step in zip(LENGTHS, (10, 20, 31), strict=True):
        saved = torch.load(folder / f"checkpoint_seq{n_seq}_final.pt", weights_only=True)
        assert (saved["seq_len"], saved["step"]) == (n_seq, step)
        assert saved["config"]["ladder"]["lengths"] == "4,8,16"
        assert set(saved["optimizer_state_dict"]) == {"state", "param_groups"}
    last = torch.load(folder / "checkpoint_final.pt", weights_only=True)
    assert all(
        torch.equal(value, saved["model_state_dict"][name])
        for name, value in last["model_state_dict"].items()
    )


def test_all_lengths_score_the_same_tokens(text: Path) -> None:
    climb = compose(climbing(text), prepare(climbing(text).data, 16), None)
    targets = []
    for n_seq, step in zip(LENGTHS, (1, 11, 21), strict=True):
        windows = validation_at(climb, step)
        assert windows.inputs_WN.shape[1] == n_seq
        targets.append(windows.targets_WN.flatten())
        config = standing(text, n_seq)
        alone = compose(config, prepare(config.data, n_seq), None).validation
        assert torch.equal(alone[0].flatten(), windows.inputs_WN.flatten())
        assert torch.equal(alone[1].flatten(), windows.targets_WN.flatten())
    assert all(torch.equal(one, other) for one, other in pairwise(targets))


def test_context_is_worth_what_the_same_tokens_cost_without_it(text: Path) -> None:
    config = climbing(text, precision="float64")
    run = compose(config, prepare(config.data, 16), None)
    run.progress.step = 31
    inputs, targets = run.validation
    validate(run)
    with torch.no_grad():
        behind = token_loss_nats(run.model.eval()(inputs), targets)[:, 8:].mean()
        alone = token_loss_nats(run.model(inputs[:, 8:]), targets[:, 8:]).mean()
    assert context_worths(run) == {
        "context_worth_nats": pytest.approx(float(alone - behind), abs=1e-12)
    }
    assert abs(alone - behind) > 1e-9


@pytest.mark.parametrize("n_seq", [16, 13])  # of 13 the blocks do not divide the second half
def test_what_lies_further_back_is_worth_what_tokens_cost_with_less(
    text: Path, n_seq: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    distance, half = 3, n_seq // 2
    monkeypatch.setattr("bkray.train.ladder.DISTANCES", (distance, n_seq))
    config = climbing(
        text, precision="float64", **{"ladder.lengths": f"4,{n_seq}", "model.n_seq": n_seq}
    )
    run = compose(config, prepare(config.data, n_seq), None)
    run.progress.step = 31
    inputs, targets = run.validation
    validate(run)
    with torch.no_grad():
        behind = token_loss_nats(run.model.eval()(inputs), targets)[:, half:].mean()
        parts = []
        for first in range(half, n_seq, distance):
            seen = slice(first - distance, first + distance)
            said = token_loss_nats(run.model(inputs[:, seen]), targets[:, seen])
            parts.append(said[:, distance:])
        cut = torch.cat(parts, dim=1).mean()
    found = context_worths(run)
    assert list(found) == ["context_worth_nats", f"context_worth_beyond_{distance}_nats"]
    assert found["context_worth_beyond_3_nats"] == pytest.approx(float(cut - behind), abs=1e-12)
    assert abs(cut - behind) > 1e-9


def test_lengths_that_divide_nothing_score_the_same_tokens(text: Path) -> None:
    """Each row by itself, the last of a stretch as a shorter one, in float64."""
    knobs = {"ladder.lengths": "5,12,16", "precision": "float64"}
    climb = compose(climbing(text, **knobs), prepare(climbing(text).data, 16), None)
    inputs_WN, targets_WN = climb.validation
    for n_seq, step in zip((5, 12, 16), (1, 11, 21), strict=True):
        climb.progress.step = step
        with torch.no_grad():
            losses = [
                token_loss_nats(climb.model.eval()(inputs_WN[:, own]), targets_WN[:, own])
                for own in (slice(i, min(i + n_seq, 16)) for i in range(0, 16, n_seq))
            ]
        assert validate(climb).loss_nats == pytest.approx(
            float(torch.cat(losses, dim=1).mean()), abs=1e-12
        )
        times = -(-16 // n_seq)
        config = standing(text, n_seq, batch_size=2, accumulation=1, eval_windows=4 * times)
        alone = compose(config, prepare(config.data, n_seq), None)
        windows = validation_at(climb, step)
        assert torch.equal(alone.validation[0], windows.inputs_WN)
        assert torch.equal(alone.validation[1], windows.targets_WN)


def test_a_ladder_of_any_lengths_is_climbed(text: Path) -> None:
    done = of(RungDone, play(climbing(text, **{"ladder.lengths": "5,12,16"}), None))
    assert [one.n_seq for one in done] == [5, 12, 16]
    # 2 rows of 16 are 32 tokens, and rows come in twos: 6 of 5 sites, 2 of 12
    assert [one.metrics["tokens_per_step"] for one in done] == [30, 24, 32]


def test_kinds_stay_apart_when_stretches_are_cut(text: Path) -> None:
    def seen(n_seq: int, times: int) -> dict[str, float]:
        knobs = {"data.corpus": "mixture", "batch_size": 2, "accumulation": 1}
        config = standing(text, n_seq, **knobs, eval_windows=6 * times, precision="float64")
        run = compose(config, prepare(config.data, n_seq), None)
        for parameter in run.model.parameters():
            torch.nn.init.zeros_(parameter)
        run.model.head.bias = torch.nn.Parameter(torch.linspace(-2, 2, 256).double())
        return {k: v for k, v in validate(run).metrics.items() if k.startswith("kinds/")}

    whole = seen(16, 1)
    assert len(whole) == 6
    assert whole == pytest.approx(seen(4, 4))
    assert whole == pytest.approx(seen(5, 4))


def test_a_rung_by_itself_reports_the_same_names(
    text: Path, climbed: tuple[Path, list[Any]]
) -> None:
    (alone,) = of(RungDone, play(standing(text, 8), None))
    assert alone.step == 40
    assert set(alone.metrics) == set(of(RungDone, climbed[1])[1].metrics)


def test_a_trial_without_a_ladder_reports_none(text: Path) -> None:
    assert not of(RungDone, play(short_config(text), None))


def test_a_rung_that_diverges_is_the_last_and_says_so(text: Path, tmp_path: Path) -> None:
    events = play(climbing(text, lr=1e4, **{"train.steps": 300}), tmp_path)
    done = of(RungDone, events)
    assert of(TrialEnded, events)[0].outcome == "diverged"
    assert done[-1].diverged
    assert "loss" not in done[-1].metrics
    assert len(done) < 3
    assert json.loads(json.dumps(dict(done[-1].metrics))) == dict(done[-1].metrics)
