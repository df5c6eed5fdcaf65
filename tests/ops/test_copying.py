"""The n-gram cache against a plain search backwards. Letters: B batch, N sites."""

import pytest
import torch
from torch import Tensor

from bkray.ops.copying import NOTHING, longest_follower


def plain(tokens_BN: Tensor, n_runs: int) -> tuple[Tensor, Tensor]:
    rows = [[_plain_site(row, t, n_runs) for t in range(len(row))] for row in tokens_BN.tolist()]
    said_BN2 = torch.tensor(rows)
    return said_BN2[..., 0], said_BN2[..., 1]


def _plain_site(row: list[int], t: int, n_runs: int) -> tuple[int, int]:
    for r in reversed(range(n_runs)):
        run = row[max(t - 2**r + 1, 0) : t + 1]
        for s in range(t - 1, 2**r - 2, -1):
            if len(run) == 2**r and row[s - 2**r + 1 : s + 1] == run:
                return row[s + 1], r
    return NOTHING, NOTHING


@pytest.mark.parametrize("vocab_size", [2, 3, 256])
@pytest.mark.parametrize("n_runs", [1, 2, 3, 4])
@pytest.mark.parametrize("n_sites", [1, 2, 3, 9, 40])
def test_the_latest_longest_run_says_what_followed(
    vocab_size: int, n_runs: int, n_sites: int
) -> None:
    draw = torch.Generator().manual_seed(n_runs * 100 + n_sites)
    tokens = torch.randint(vocab_size, (3, n_sites), generator=draw)
    for said, wanted in zip(longest_follower(tokens, n_runs), plain(tokens, n_runs), strict=True):
        assert torch.equal(said, wanted)


def test_a_pattern_is_known_once_it_has_come_round() -> None:
    tokens = torch.tensor([[7, 1, 9, 4] * 4])
    follower, run = longest_follower(tokens, 4)
    assert (follower[0, :4] == NOTHING).all()
    assert torch.equal(follower[0, 4:-1], tokens[0, 5:])
    assert run[0].tolist() == [NOTHING] * 4 + [0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
