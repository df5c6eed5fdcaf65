"""Batches of growing length: each part's own, in turn, and exact resume."""

from itertools import islice

import numpy as np
import torch

from bkray.data.batches import Batches
from bkray.data.climb import Climb

TOKENS = np.arange(1003, dtype=np.uint16)
LENGTHS = (10, 20, 40)


def parts() -> list[tuple[Batches, int]]:
    return [(Batches(TOKENS, n, 120 // n, seed=1), 3) for n in LENGTHS]


def test_each_part_gives_its_share_and_the_last_one_goes_on() -> None:
    climb = Climb(parts())
    ours = [(inputs, climb.last_taken[1]) for inputs, _ in islice(climb, 11)]
    theirs = [
        (inputs, batches.last_taken[1])
        for (batches, _), n in zip(parts(), (3, 3, 5), strict=True)
        for inputs, _ in islice(batches, n)
    ]
    for (our, our_starts), (their, their_starts) in zip(ours, theirs, strict=True):
        assert torch.equal(our, their)
        assert our_starts == their_starts


def test_it_goes_on_anywhere() -> None:
    whole = [inputs for inputs, _ in islice(Climb(parts()), 11)]
    for n_taken in range(11):
        climb = Climb(parts())
        list(islice(climb, n_taken))
        state = climb.state()
        again = Climb(parts())
        again.restore(state)
        assert torch.equal(next(again)[0], whole[n_taken])
        assert torch.equal(next(climb)[0], whole[n_taken])
        climb.restore(climb.last_taken[0])  # as a replay does, also back over a border
        assert torch.equal(next(climb)[0], whole[n_taken])
