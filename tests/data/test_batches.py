"""Batches: every token once an epoch, exact resume, and fixed validation windows."""

import hashlib
from collections.abc import Iterable
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


def digest_of(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for inputs, targets in batches:
        digest.update(inputs.numpy().tobytes())
        digest.update(targets.numpy().tobytes())
    return digest.hexdigest()


def test_running_text_gives_the_batches_it_always_gave() -> None:
    """A trial that is resumed with another version of bkray must see the same tokens."""
    made = [Batches(TOKENS, *given) for given in ((10, 4, 5), (64, 16, 0), (1002, 2, 1))]
    assert digest_of(batch for batches in made for batch in first(40, batches)) == (
        "0fa109dbc03ca3e98ebce50fa5548f7dc2587e96d66a55279358fa9546e526d9"
    )
    windows = [validation_windows(TOKENS, *given) for given in ((10, 5), (64, 1000), (1002, 3))]
    assert digest_of(windows) == "1862000c0e4648dbe477a8e4c04dd8b12ee932e8c306f55883a1404e4c64ad04"


SEGMENT = 33
KINDS = ("a", "b", "c")
SEGMENTED = np.arange(30 * SEGMENT, dtype=np.uint16)
"""Ten segments of each kind; a token says where it stands."""


def segments_of(tokens: torch.Tensor) -> torch.Tensor:
    return tokens // SEGMENT


@pytest.mark.parametrize("n_seq", [2, 10, 31, 32])
def test_no_window_lies_in_two_segments(n_seq: int) -> None:
    batches = Batches(SEGMENTED, n_seq, 7, seed=0, segment=SEGMENT)
    windows = validation_windows(SEGMENTED, n_seq, 10_000, segment=SEGMENT, kinds=KINDS)
    for inputs, targets in [*first(200, batches), windows]:
        assert torch.equal(targets, inputs + 1)
        assert torch.equal(segments_of(inputs[:, 0]), segments_of(targets[:, -1]))


def test_every_epoch_cuts_all_segments_alike_and_from_another_offset() -> None:
    batches = Batches(SEGMENTED, 10, 1, seed=3, segment=SEGMENT)
    starts: dict[int, list[int]] = {}
    for inputs, _ in islice(batches, 700):
        starts.setdefault(batches.state()["epoch"], []).append(int(inputs[0, 0]))
    del starts[max(starts)]  # not at its end
    offsets = {min(of_epoch) for of_epoch in starts.values()}
    for of_epoch in starts.values():
        offset = min(of_epoch)
        assert sorted(of_epoch) == [
            SEGMENT * segment + place for segment in range(30) for place in range(offset, 23, 10)
        ]
        assert of_epoch != sorted(of_epoch)
    assert len(offsets) > 3
    assert max(offsets) < 10


@pytest.mark.parametrize("n_done", [0, 11, 12, 13, 40])
def test_segments_resume_exactly(n_done: int) -> None:
    whole = first(60, Batches(SEGMENTED, 10, 7, seed=1, segment=SEGMENT))
    stopped = Batches(SEGMENTED, 10, 7, seed=1, segment=SEGMENT)
    first(n_done, stopped)
    resumed = Batches(SEGMENTED, 10, 7, seed=1, segment=SEGMENT)
    resumed.restore(stopped.state())
    assert_equal_batches(first(60 - n_done, resumed), whole[n_done:])


@pytest.mark.parametrize(("n_seq", "n_windows"), [(10, 1), (10, 4), (10, 30), (32, 30), (10, 89)])
def test_validation_windows_take_turns_of_kinds_and_spread_over_segments(
    n_seq: int, n_windows: int
) -> None:
    inputs_WN, targets_WN = validation_windows(
        SEGMENTED, n_seq, n_windows, segment=SEGMENT, kinds=KINDS
    )
    assert inputs_WN.shape == (n_windows, n_seq)
    segment_W = segments_of(inputs_WN[:, 0])
    assert torch.equal(segment_W % 3, torch.arange(n_windows) % 3)
    assert len(targets_WN.unique()) == targets_WN.numel()
    turn_W = segment_W[::3] // 3
    assert turn_W[0] == 0
    if n_windows > 3:
        assert turn_W[-1] == 9
        assert (turn_W.diff() - 9 / (len(turn_W) - 1)).abs().max() <= 1


def test_segments_give_as_many_validation_windows_as_fit() -> None:
    for n_seq, per_segment in ((10, 3), (16, 2), (17, 1), (32, 1)):
        inputs_WN, _ = validation_windows(SEGMENTED, n_seq, 10_000, segment=SEGMENT, kinds=KINDS)
        assert len(inputs_WN) == 30 * per_segment


def test_a_window_longer_than_a_segment_is_an_error() -> None:
    with pytest.raises(DataError, match=r"n_seq=33 does not fit .* 33 tokens: use at most 32"):
        Batches(SEGMENTED, 33, 1, seed=0, segment=SEGMENT)
    with pytest.raises(DataError, match=r"n_seq=33 does not fit"):
        validation_windows(SEGMENTED, 33, 4, segment=SEGMENT, kinds=KINDS)
