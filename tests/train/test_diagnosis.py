"""What broke first is found: module, tensor, token and batch, and a replay hits it again."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import faulty_config, recorded
from ranks import in_team
from tiny import steer, tiny_model, uneven_rows
from torch import Tensor, nn
from trials import of, short_config

from bkray.data.shards import prepare
from bkray.events import TrialEnded, Warned
from bkray.replay import replay
from bkray.train import checkpoint
from bkray.train.findings import (
    FOLDER,
    SNAPSHOT,
    Diagnosis,
    read_diagnosis,
    read_record,
)
from bkray.train.growth import BlockStep, growth
from bkray.train.probe import Probe
from bkray.train.team import ALONE
from bkray.trial import compose

STEP = 13
"""Where faults are planted: the third step after the last good state."""

PLANTED: list[tuple[str, str, str, str, str]] = [
    ("dense", "linear_recurrence", "embedding", "forward", "nan"),
    ("dense", "linear_recurrence", "embedding", "backward", "nan"),
    ("dense", "linear_recurrence", "blocks.0.mixer_norm", "forward", "inf"),
    ("dense", "linear_recurrence", "blocks.1.mixer", "forward", "nan"),
    ("dense", "linear_recurrence", "blocks.1.mixer", "backward", "nan"),
    ("dense", "linear_recurrence", "blocks.1.mixer.forget", "forward", "nan"),
    ("dense", "linear_recurrence", "blocks.1.mixer.out", "backward", "inf"),
    ("dense", "bk", "blocks.1.mixer.potential", "forward", "nan"),
    ("dense", "bk", "blocks.0.mixer.gate", "backward", "nan"),
    ("dense", "bk", "blocks.0.mixer", "forward", "inf"),
    ("dense", "attention", "blocks.0.mixer.qkv", "forward", "nan"),
    ("dense", "attention", "blocks.1.mixer.qkv", "backward", "nan"),
    ("dense", "linear_recurrence", "blocks.0.feed_forward.up", "forward", "inf"),
    ("dense", "linear_recurrence", "blocks.1.feed_forward", "backward", "nan"),
    ("dense", "linear_recurrence", "blocks.1.feed_norm", "backward", "nan"),
    ("dense", "linear_recurrence", "blocks.0", "forward", "nan"),
    ("dense", "linear_recurrence", "blocks.0", "backward", "nan"),
    ("dense", "linear_recurrence", "depth", "forward", "nan"),
    ("dense", "linear_recurrence", "norm", "backward", "inf"),
    ("dense", "linear_recurrence", "head", "forward", "nan"),
    ("dense", "linear_recurrence", "head", "backward", "nan"),
    ("dropout", "linear_recurrence", "blocks.1.feed_forward.down", "forward", "nan"),
    ("act", "linear_recurrence", "depth.halting.0", "forward", "nan"),
    ("act", "linear_recurrence", "depth.halting.0", "backward", "nan"),
    ("act", "bk", "depth.halting.0.up", "backward", "nan"),
    ("act", "bk", "blocks.1.mixer.values", "forward", "nan"),
    ("act", "linear_recurrence", "depth", "backward", "nan"),
    ("experts", "linear_recurrence", "blocks.1.feed_forward.router", "forward", "nan"),
    ("experts", "linear_recurrence", "blocks.0.feed_forward.router", "backward", "nan"),
    ("experts", "linear_recurrence", "blocks.0.feed_forward.experts.1.down", "forward", "inf"),
    ("experts", "linear_recurrence", "blocks.1.feed_forward.experts.2", "backward", "nan"),
]


@pytest.mark.parametrize(("kind", "mixer", "module", "where", "what"), PLANTED)
def test_the_module_that_broke_is_named_and_breaks_again(
    kind: str, mixer: str, module: str, where: str, what: str, text: Path, tmp_path: Path
) -> None:
    config = faulty_config(text, module, step=STEP, where=where, what=what, kind=kind, mixer=mixer)
    found = diagnosed(config, tmp_path)
    assert (found.kind, found.step, found.module, found.during) == ("tensor", STEP, module, where)
    assert ("gradient of" in str(found.tensor)) is (where == "backward")
    assert found.n_repeated == 3
    assert found.largest_loss_difference == 0
    again = replay(tmp_path)
    assert again.is_reproduced, (again.diagnosis, found)
    assert again.diagnosis.site == found.site


@pytest.mark.parametrize(
    ("kind", "mixer", "module", "where"),
    [
        ("dense", "linear_recurrence", "blocks.1.mixer", "forward"),
        ("dense", "linear_recurrence", "blocks.0.feed_forward.up", "backward"),
        ("dense", "attention", "blocks.0.mixer.qkv", "forward"),
        ("dense", "attention", "blocks.1.mixer.qkv", "backward"),
        ("dense", "bk", "embedding", "forward"),
        ("dense", "bk", "blocks.0.mixer", "backward"),
        ("act", "linear_recurrence", "blocks.0.mixer", "forward"),
        ("act", "attention", "blocks.1.mixer", "forward"),
        ("experts", "attention", "blocks.0.feed_norm", "forward"),
        ("experts", "attention", "blocks.0.feed_norm", "backward"),
    ],
)
def test_the_token_that_broke_is_found_in_the_text(
    kind: str, mixer: str, module: str, where: str, text: Path, tmp_path: Path
) -> None:
    config = faulty_config(
        text, module, step=STEP, where=where, kind=kind, mixer=mixer, row=2, position=9
    )
    found = diagnosed(config, tmp_path)
    assert found.module == module
    assert found.site is not None
    assert (found.site.row, found.site.position, found.site.n_tokens) == (2, 9, 1)
    taken = next(one for one in read_record(tmp_path / FOLDER).steps if one.step == STEP)
    first = taken.starts[2]
    assert found.batch == {**taken.batch, "first_token": first}
    tokens = prepare(config.data, config.model.n_seq).tokens("train")
    said = found.site.before + found.site.token + found.site.after
    assert said.encode() == tokens[first : first + 16].tobytes()
    assert found.site.token.encode() == tokens[first + 9 : first + 10].tobytes()


def test_a_token_is_found_in_accumulated_parts(text: Path, tmp_path: Path) -> None:
    """Two parts of two rows: the module is called twice a step, and breaks in the second part."""
    config = faulty_config(text, "blocks.0.mixer", step=26, row=1, position=4, accumulation=2)
    found = diagnosed(config, tmp_path)
    assert found.step == STEP
    assert found.site is not None
    assert (found.site.row, found.site.position) == (3, 4)
    assert replay(tmp_path).is_reproduced


def test_what_does_not_come_again_is_not_explained(text: Path, tmp_path: Path) -> None:
    config = faulty_config(text, "blocks.0.mixer", step=STEP, where="once")
    found = diagnosed(config, tmp_path)
    assert (found.kind, found.module, found.tensor, found.site) == ("vanished", None, None, None)
    assert found.largest_loss_difference is None
    again = replay(tmp_path)  # a model built anew, in which it happens once more
    assert again.diagnosis.module == "blocks.0.mixer"
    assert not again.is_reproduced


def test_what_is_mended_before_the_loss_is_found_where_it_began(
    text: Path, tmp_path: Path
) -> None:
    """The judge sees it at the end of the window, at step 16; it began at 13."""
    config = faulty_config(text, "blocks.0", step=STEP, where="hidden", row=1, position=3)
    found = diagnosed(config, tmp_path)
    record = read_record(tmp_path / FOLDER)
    assert record.verdict.step == 16
    assert all(one.is_finite for one in record.steps)
    assert (found.kind, found.step, found.module) == ("tensor", STEP, "blocks.0")
    assert found.site is not None
    assert (found.site.row, found.site.position) == (1, 3)
    assert replay(tmp_path).is_reproduced


def test_a_parameter_that_an_update_made_infinite_is_named(text: Path, tmp_path: Path) -> None:
    config = short_config(text, lr=1e38, weight_decay=1e9)
    found = diagnosed(config, tmp_path)
    assert found.kind == "tensor"
    assert str(found.tensor).startswith("parameter ")
    assert replay(tmp_path).is_reproduced


def test_a_fault_in_validation_alone_is_found_there(tmp_path: Path) -> None:
    """The letter z is only in the last tenth of the text, which validates; its row is infinite."""
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox " * 500 + "zz jazz " * 120)
    config = short_config(path)
    run = compose(config, prepare(config.data, config.model.n_seq), tmp_path / "trial")
    with torch.no_grad():
        run.model.get_submodule("embedding").weight[ord("z")] = math.inf
    checkpoint.save(tmp_path / "trial" / checkpoint.FOLDER, run.state())
    found = diagnosed(config, tmp_path / "trial")
    assert found.kind == "tensor"
    assert (found.during, found.step) == ("validation", 20)
    assert found.site is not None
    assert found.site.token == "z"
    assert replay(tmp_path / "trial").is_reproduced


def test_an_absurd_learning_rate_is_told_without_a_tensor(text: Path, tmp_path: Path) -> None:
    """Nothing is infinite: where growth began is told, and a replay says the same."""
    config = short_config(text, "bk", lr=30.0)
    found = diagnosed(config, tmp_path)
    assert read_record(tmp_path / FOLDER).verdict.rule == "explosion"
    assert (found.kind, found.module, found.tensor) == ("growth", None, None)
    assert found.largest_loss_difference == 0
    assert found.growth is not None
    assert found.growth.block in found.blocks
    assert found.growth.factor is not None
    assert found.growth.factor > 10
    assert found.growth.step is not None
    assert 1 < found.growth.step <= found.step
    assert replay(tmp_path).is_reproduced


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_team_finds_what_one_process_finds(where: str, text: Path, tmp_path: Path) -> None:
    """Row 1 of every process breaks; the first one is heard, and one process replays all."""
    config = faulty_config(
        text, "blocks.1.mixer", step=STEP, where=where, kind="dropout", row=1, position=5
    )
    first, second = in_team(2, tmp_path, recorded, config, tmp_path / "team")
    assert of(TrialEnded, first)[0].outcome == of(TrialEnded, second)[0].outcome == "diverged"
    assert not of(Warned, first)
    found = read_diagnosis(tmp_path / "team" / FOLDER)
    assert found is not None
    assert (found.step, found.module) == (STEP, "blocks.1.mixer")
    assert found.site is not None
    assert (found.site.row, found.site.position) == (1, 5)
    assert found.largest_loss_difference == pytest.approx(0, abs=1e-5)
    again = replay(tmp_path / "team")
    assert again.is_reproduced
    assert again.diagnosis.site == found.site
    assert again.diagnosis.largest_loss_difference == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_what_hangs_on_a_process_is_said_not_to_come_again(text: Path, tmp_path: Path) -> None:
    """One process repeats everybody's rows: a broken machine is no part of what it repeats."""
    config = faulty_config(text, "norm", step=STEP, where="second", row=0, position=5)
    in_team(2, tmp_path, recorded, config, tmp_path / "team")
    found = read_diagnosis(tmp_path / "team" / FOLDER)
    assert found is not None
    assert (found.kind, found.module) == ("vanished", None)


@pytest.mark.slow
def test_a_leader_that_fails_in_repeating_keeps_no_one_waiting(text: Path, tmp_path: Path) -> None:
    config = faulty_config(text, "head", step=STEP, where="forward", what="raise")
    for events in in_team(2, tmp_path, recorded, config, tmp_path / "team"):
        assert of(TrialEnded, events)[0].outcome == "diverged"
    assert (tmp_path / "team" / FOLDER / SNAPSHOT).exists()
    assert read_diagnosis(tmp_path / "team" / FOLDER) is None


def test_a_full_disk_changes_no_outcome(text: Path, tmp_path: Path) -> None:
    """A file stands where the folder should be: nothing can be written, and that is told."""
    (tmp_path / FOLDER).write_text("in the way")
    events = recorded(ALONE, faulty_config(text, "head", step=STEP), tmp_path)
    ended = of(TrialEnded, events)[0]
    assert (ended.outcome, ended.reason) == ("diverged", f"loss is nan at step {STEP}")
    told = [warned.message for warned in of(Warned, events)]
    assert len(told) == 2
    assert told[0].startswith("forensics could not be kept: ")
    assert told[1].startswith("the divergence was not explained: ")


def test_a_model_that_fails_when_it_runs_again_changes_no_outcome(
    text: Path, tmp_path: Path
) -> None:
    config = faulty_config(text, "head", step=STEP, where="forward", what="raise")
    events = recorded(ALONE, config, tmp_path)
    assert of(TrialEnded, events)[0].outcome == "diverged"
    (told,) = of(Warned, events)
    assert told.message == "the divergence was not explained: ArithmeticError: again"
    assert (tmp_path / FOLDER / SNAPSHOT).exists()
    assert read_diagnosis(tmp_path / FOLDER) is None


@pytest.mark.parametrize("step", [1, 11, STEP])
def test_what_is_infinite_in_every_step_is_no_fault(text: Path, tmp_path: Path, step: int) -> None:
    """Also where the step that breaks is the first one after the snapshot."""
    found = diagnosed(faulty_config(text, "norm", step=step, masked=True), tmp_path)
    assert (found.module, found.tensor, found.step) == ("norm", "output", step)


def test_tensors_that_are_not_finite_come_in_the_order_of_execution() -> None:
    class Masked(nn.Module):
        def forward(self, scores: Tensor) -> Tensor:
            return scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)

    model = nn.Sequential(Masked(), nn.Softmax(-1))
    with Probe(model) as probe:
        model(torch.zeros(1, 4, 4))
    assert [(one.module, one.tensor, one.n_nan) for one in probe.faults] == [
        ("0", "output", 0),
        ("Sequential", "input of 1", 0),
    ]


class Summed(nn.Module):
    """Adds up the sites before; the gradient of the sum is NaN at site 3 of row 1."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x_BND: Tensor) -> Tensor:
        summed = self.inner(x_BND).cumsum(1)
        spoilt = torch.zeros(2, 6, 2, dtype=torch.bool)
        spoilt[1, 3] = True
        summed.register_hook(lambda gradient: gradient.masked_fill(spoilt, math.nan))
        return summed


def test_in_a_backward_pass_the_last_token_that_is_hit_is_the_first_one() -> None:
    """A gradient flows to the tokens before."""
    model = Summed()
    with Probe(model, backward=True) as probe:
        torch.autograd.backward(model(torch.randn(2, 6, 2)).sum())
    first = probe.faults[0]
    assert (first.module, first.tensor) == ("Summed", "gradient of output of inner")
    assert first.spot is not None
    assert (first.spot.row, first.spot.position, first.spot.n_tokens) == (1, 3, 4)


@pytest.mark.parametrize("where", ["blocks.1.feed_forward.up", "depth.halting.1.up", "blocks.2"])
def test_the_place_of_a_token_is_known_after_others_stopped(where: str) -> None:
    """Of the third row some tokens stop at layer 1, so that those behind them move up."""
    model = tiny_model(depth="act", act_threshold=0.8)
    steer(model)
    tokens_BN = uneven_rows(16)
    places: list[Tensor] = []

    def spoil(_: nn.Module, __: Any, output: Any) -> Any:
        spoilt = output[0] if isinstance(output, tuple) else output
        spoilt = spoilt.clone()
        spoilt[2, 3] = math.nan
        return (spoilt, *output[1:]) if isinstance(output, tuple) else spoilt

    block = model.blocks[2 if where == "blocks.2" else 1]
    block.register_forward_pre_hook(lambda _, given: places.append(given[1]))
    model.get_submodule(where).register_forward_hook(spoil)
    with Probe(model) as probe:
        model(tokens_BN)
    position = int(places[0][2, 3])
    assert position > 3
    first = probe.faults[0]
    assert first.module == where
    assert first.spot is not None
    assert (first.spot.row, first.spot.position, first.spot.n_tokens) == (2, position, 1)
    assert first.spot.tokens == tuple(tokens_BN[2].tolist())


def test_growth_is_the_first_block_of_the_first_step() -> None:
    quiet = {"a": 1.0, "b": 1.0, "c": 1.0}
    steps = [
        BlockStep(5, 2.0, quiet, quiet),
        BlockStep(6, 2.5, {**quiet, "b": 9.0}, quiet),
        BlockStep(7, 4.0, {**quiet, "b": 11.0, "c": 99.0}, {**quiet, "a": 50.0}),
        BlockStep(8, 4.5, {**quiet, "a": 1e6}, quiet),
    ]
    found = growth(steps, 1.9)
    assert (found.step, found.block, found.quantity, found.factor) == (7, "b", "activation", 11.0)
    assert (found.jump_step, found.jump_from, found.jump_to) == (7, 2.5, 4.0)
    calm = growth(steps[:2], 1.9)
    assert (calm.step, calm.block, calm.jump_step) == (None, None, 6)
    falling = growth([BlockStep(5, 1.0, quiet, quiet)], 2.0)
    assert falling.jump_step is None


def diagnosed(config: Any, folder: Path) -> Diagnosis:
    """Return what is found of a trial, which must diverge and say nothing else."""
    events = recorded(ALONE, config, folder)
    assert of(TrialEnded, events)[0].outcome == "diverged"
    assert not of(Warned, events)
    found = read_diagnosis(folder / FOLDER)
    assert found is not None
    return found
