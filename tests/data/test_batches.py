"""Batches: every token once an epoch, exact resume, and fixed validation windows."""

from itertools import islice

import numpy as np
import pytest
import torch

from bkray.data.batches import Batches, validation_windows
from bkray.errors import DataError

TOKENS = np.arange(1003, dtype=np.uint16)
TOKENS.flags.writeable = False


def first(n: int, batches: Batches) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(islice(batches, n))


def assert_equal_batches(
    ours: list[tuple[torch.Tensor, torch.Tensor]], theirs: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our[0], their[0])
        assert torch.equal(our[1], their[1])


def test_targets_are_the_inputs_shifted_by_one() -> None:
    inputs_BN, targets_BN = next(Batches(TOKENS, 10, 4, seed=0))
    assert inputs_BN.shape == targets_BN.shape == (4, 10)
    assert inputs_BN.dtype == targets_BN.dtype == torch.int64
    assert inputs_BN.is_contiguous() and targets_BN.is_contiguous()
    assert torch.equal(targets_BN, inputs_BN + 1)


def test_an_epoch_holds_every_token_behind_its_offset_once() -> None:
    batches, seen = Batches(TOKENS, 10, 1, seed=3), []
    while batches.state()["epoch"] == 0:
        seen.append(next(batches)[0].flatten())
    epoch = torch.cat(seen[:-1]).sort().values  # the last one began the next epoch
    assert torch.equal(epoch, torch.arange(int(epoch[0]), int(epoch[0]) + len(epoch)))
    assert epoch[0] < 10
    assert 1002 - epoch[-1] <= 10


def test_epochs_differ_in_offset_and_order() -> None:
    starts = [int(inputs[0, 0]) for inputs, _ in first(1000, Batches(TOKENS, 10, 1, seed=0))]
    assert len({start % 10 for start in starts}) > 3
    assert starts[:99] != sorted(starts[:99])
    assert starts[:50] != starts[100:150]


def test_the_seed_alone_decides_the_order() -> None:
    assert_equal_batches(
        first(30, Batches(TOKENS, 10, 8, seed=5)), first(30, Batches(TOKENS, 10, 8, seed=5))
    )
    one, other = next(Batches(TOKENS, 10, 8, seed=5)), next(Batches(TOKENS, 10, 8, seed=6))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("n_done", [0, 1, 12, 13, 25, 40])
def test_resumes_exactly_within_and_across_epochs(n_done: int) -> None:
    whole = first(60, Batches(TOKENS, 10, 8, seed=1))
    stopped = Batches(TOKENS, 10, 8, seed=1)
    first(n_done, stopped)
    state = stopped.state()
    assert all(type(value) is int for value in state.values())
    resumed = Batches(TOKENS, 10, 8, seed=1)
    resumed.restore(state)
    assert_equal_batches(first(60 - n_done, resumed), whole[n_done:])


def test_taking_the_state_changes_nothing() -> None:
    batches = Batches(TOKENS, 10, 8, seed=1)
    looked = []
    for _ in range(20):
        batches.state()
        looked.append(next(batches))
    assert_equal_batches(looked, first(20, Batches(TOKENS, 10, 8, seed=1)))


def test_fewer_windows_than_a_batch_repeat_over_epochs() -> None:
    batches = Batches(TOKENS[:25], 10, 16, seed=0)
    inputs_BN, _ = next(batches)
    assert inputs_BN.shape == (16, 10)
    assert batches.state()["epoch"] >= 7


def test_the_shortest_possible_text_gives_its_one_window() -> None:
    inputs_BN, targets_BN = next(Batches(TOKENS[:11], 10, 3, seed=0))
    assert torch.equal(inputs_BN, torch.arange(10).expand(3, 10))
    assert torch.equal(targets_BN, torch.arange(1, 11).expand(3, 10))


def test_too_few_tokens_are_an_error() -> None:
    with pytest.raises(DataError, match=r"has 10 tokens.*needs 11"):
        Batches(TOKENS[:10], 10, 1, seed=0)
    with pytest.raises(DataError, match=r"has 10 tokens.*needs 11"):
        validation_windows(TOKENS[:10], 10, 4)


def test_validation_windows_are_spread_from_the_first_to_the_last_token() -> None:
    inputs_WN, targets_WN = validation_windows(TOKENS, 10, 5)
    assert inputs_WN.shape == (5, 10)
    assert torch.equal(targets_WN, inputs_WN + 1)
    assert inputs_WN[0, 0] == 0
    assert targets_WN[-1, -1] == 1002
    gaps = inputs_WN[:, 0].diff()
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("n_tokens", [11, 20, 21, 25, 31, 99, 1003])
def test_validation_windows_never_share_a_target_and_are_as_many_as_fit(n_tokens: int) -> None:
    _, targets_WN = validation_windows(TOKENS[:n_tokens], 10, 1000)
    assert len(targets_WN) == (n_tokens - 1) // 10
    assert len(targets_WN.unique()) == targets_WN.numel()
