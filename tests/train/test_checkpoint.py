"""A checkpoint comes back whole or is refused with one clear message."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import random_tokens, tiny_config, tiny_model

from bkray.errors import ResumeError
from bkray.stability import Health, Norms
from bkray.train import checkpoint
from bkray.train.checkpoint import Progress, State
from bkray.train.optim import adamw
from bkray.train.step import losses

KNOBS = {"depth": "act", "n_experts": 2}
PROGRESS = Progress(
    step=7,
    tokens=700,
    train_seconds=1.5,
    best_val_loss_nats=2.5,
    norms=Norms(count=2, mean=1.5, square_sum=0.5, low=1.0, high=2.0),
    metrics={"act/ponder_cost": 2.25},
    health=Health(last_loss_nats=2.75, spike_count=2),
)


def trained(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    config, model = tiny_config(**KNOBS), tiny_model(seed=seed, **KNOBS)
    optimizer = adamw(model, config.optimizer)
    tokens = random_tokens(2, 16, seed)
    torch.autograd.backward(losses(model(tokens), tokens, config.model, None)["total"])
    optimizer.step()
    return model, optimizer


def saved_in(
    folder: Path, seed: int = 0, *, best: bool = False
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model, optimizer = trained(seed)
    state = checkpoint.state_of(
        trial_id="abc",
        model=model,
        optimizer=optimizer,
        batches_state={"epoch": 1, "position": 5},
        progress=PROGRESS,
        load_LE=torch.tensor([[0.25, 0.75]]),
        rng=[checkpoint.rng_state()],
    )
    checkpoint.save(folder, state, best=best)
    return model, optimizer


def loaded(folder: Path) -> State:
    state, warning = checkpoint.load(folder, "abc")
    assert warning == ""
    assert state is not None
    return state


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def test_everything_that_the_next_step_depends_on_comes_back(tmp_path: Path) -> None:
    model, optimizer = saved_in(tmp_path / "new" / "checkpoints")
    drawn = torch.rand(5)
    other, its_optimizer = trained(seed=1)
    assert not same(other.state_dict(), model.state_dict())
    state = loaded(tmp_path / "new" / "checkpoints")
    progress, load_LE = checkpoint.restore(state, other, its_optimizer)
    assert same(other.state_dict(), model.state_dict())
    assert same(its_optimizer.state_dict(), optimizer.state_dict())
    assert progress == PROGRESS
    assert load_LE is not None
    assert torch.equal(load_LE, torch.tensor([[0.25, 0.75]]))
    assert state["batches"] == {"epoch": 1, "position": 5}
    assert torch.equal(torch.rand(5), drawn), "dropout goes on with the same numbers"


def test_a_later_checkpoint_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    saved_in(tmp_path, seed=0)
    before, _ = saved_in(tmp_path, seed=1)
    model, _ = saved_in(tmp_path, seed=2)
    assert same(loaded(tmp_path)["model"], dict(model.state_dict()))
    kept = checkpoint.read(tmp_path / checkpoint.PREVIOUS)
    assert same(kept["model"], dict(before.state_dict()))
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.NAME, checkpoint.PREVIOUS}


def test_a_kill_between_two_checkpoints_leaves_the_one_before(tmp_path: Path) -> None:
    model, _ = saved_in(tmp_path)
    (tmp_path / checkpoint.NAME).rename(tmp_path / checkpoint.PREVIOUS)
    assert same(loaded(tmp_path)["model"], dict(model.state_dict()))


def test_the_best_checkpoint_stays_when_later_ones_come(tmp_path: Path) -> None:
    best, _ = saved_in(tmp_path, seed=0, best=True)
    assert same(loaded(tmp_path)["model"], dict(best.state_dict()))
    for seed in (1, 2):
        saved_in(tmp_path, seed=seed)
    kept = checkpoint.read(tmp_path / checkpoint.BEST)
    assert same(kept["model"], dict(best.state_dict()))


def test_where_nothing_was_saved_there_is_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert checkpoint.load(folder, "abc") == (None, "")


def test_another_trials_checkpoint_is_refused_and_both_are_named(tmp_path: Path) -> None:
    saved_in(tmp_path)
    with pytest.raises(ResumeError, match=r"last\.pt belongs to trial abc, not to xyz.*delete"):
        checkpoint.load(tmp_path, "xyz")


def flipped(content: bytes) -> bytes:
    """Turn one bit in the middle of the weights, as a bad disk would."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "short": lambda content: content[:-20],
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"hello world" * 100,
    "a pickle": lambda content: pickle.dumps({"trial_id": "abc"}),
    "one bit": flipped,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_from_a_damaged_checkpoint_nothing_is_taken(tmp_path: Path, damage: str) -> None:
    saved_in(tmp_path)
    path = tmp_path / checkpoint.NAME
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    state, warning = checkpoint.load(tmp_path, "abc")
    assert state is None
    assert "last.pt cannot be read" in warning
    assert "began again from the start" in warning
    with pytest.raises(ResumeError, match=r"last\.pt cannot be read"):
        checkpoint.read(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_takes_the_place_of_a_damaged_one_and_says_so(
    tmp_path: Path, damage: str
) -> None:
    before, _ = saved_in(tmp_path, seed=0)
    saved_in(tmp_path, seed=1)
    path = tmp_path / checkpoint.NAME
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    state, warning = checkpoint.load(tmp_path, "abc")
    assert state is not None
    assert same(state["model"], dict(before.state_dict()))
    assert "last.pt cannot be read" in warning
    assert "went on from previous.pt" in warning
    checkpoint.set_damaged_aside(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {checkpoint.PREVIOUS, f"damaged-{checkpoint.NAME}"}


def test_two_damaged_checkpoints_are_both_named(tmp_path: Path) -> None:
    for seed in (0, 1):
        saved_in(tmp_path, seed=seed)
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"")
    state, warning = checkpoint.load(tmp_path, "abc")
    assert state is None
    assert "last.pt cannot" in warning
    assert "previous.pt cannot" in warning


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"trial_id": "abc", "trap": Trap()}, tmp_path / checkpoint.NAME)
    assert checkpoint.load(tmp_path, "abc").state is None
    assert not (tmp_path / "sprung").exists()
