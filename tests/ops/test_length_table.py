"""The loss of every cut from one pass, against a loop over rows, cuts and sites.

Letters: B batch, N sites, V vocabulary, K lengths.
"""

import torch
from torch import Tensor

from bkray.ops.length import loss_table, repeated_loss_table

BINS = torch.tensor([1, 4, 7, 12])
SITES = 10  # below the last bin: nothing is left behind there


def losses(seed: int) -> Tensor:
    return torch.rand(3, SITES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_table_is_the_sum_inside_and_behind_every_cut() -> None:
    inside, beyond = losses(0), losses(1)
    table = loss_table(inside, beyond, BINS)
    for row in range(3):
        for k, n in enumerate(BINS.tolist()):
            plain = inside[row, :n].sum() + beyond[row, n:].sum()
            assert abs(table[row, k] - plain) < 1e-12


def test_a_repeated_output_is_scored_on_everything_behind_it() -> None:
    inside = losses(0)
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(3, SITES, 5, dtype=torch.float64, generator=draw)
    targets = torch.randint(5, (3, SITES), generator=draw)
    table = repeated_loss_table(inside, logits, targets, BINS)
    for row in range(3):
        for k, n in enumerate(BINS.tolist()):
            behind = [-logits[row, n - 1].log_softmax(0)[targets[row, t]] for t in range(n, SITES)]
            assert abs(table[row, k] - inside[row, :n].sum() - sum(behind)) < 1e-12
