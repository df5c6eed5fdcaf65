"""The n-gram cache against a plain search backwards. Letters: B batch, N sites."""

import pytest
import torch
from torch import Tensor

from bkray.ops.copying import NOTHING, latest_follower


def plain(tokens_BN: Tensor, order: int) -> Tensor:
    rows = []
    for row in tokens_BN.tolist():
        said = [NOTHING] * len(row)
        for t in range(order - 1, len(row)):
            run = row[t - order + 1 : t + 1]
            for s in range(t - 1, order - 2, -1):
                if row[s - order + 1 : s + 1] == run:
                    said[t] = row[s + 1]
                    break
        rows.append(said)
    return torch.tensor(rows)


@pytest.mark.parametrize("vocab_size", [2, 3, 256])
@pytest.mark.parametrize("order", [1, 2, 3, 8])
@pytest.mark.parametrize("n_sites", [1, 2, 9, 40])
def test_the_latest_equal_run_says_what_followed(
    vocab_size: int, order: int, n_sites: int
) -> None:
    draw = torch.Generator().manual_seed(order * 100 + n_sites)
    tokens = torch.randint(vocab_size, (3, n_sites), generator=draw)
    assert torch.equal(latest_follower(tokens, order), plain(tokens, order))


def test_a_pattern_is_known_once_it_has_come_round() -> None:
    tokens = torch.tensor([[7, 1, 9, 4] * 4])
    follower = latest_follower(tokens, 2)
    assert (follower[0, :5] == NOTHING).all()
    assert torch.equal(follower[0, 5:-1], tokens[0, 6:])
