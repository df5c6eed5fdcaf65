"""Rotary positions. Letters as in ``attention``."""

import torch

from bkray.nn.attention import rotate


def test_rows_far_apart_are_told_apart_in_bfloat16_too() -> None:
    row_BHNC = torch.ones(1, 1, 1024, 16)
    position_BN = torch.arange(1024)[None]
    exact = rotate(row_BHNC.double(), position_BN)
    coarse = rotate(row_BHNC.bfloat16(), position_BN)
    assert coarse.dtype == torch.bfloat16
    assert (coarse.double() - exact).abs().max() < 0.02  # bfloat16 has three digits
    assert len(coarse[0, 0].float().unique(dim=0)) > 1000


def test_a_score_depends_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    scores = [
        (rotate(q, torch.tensor([[at + 5]])) * rotate(k, torch.tensor([[at]]))).sum()
        for at in (0, 3, 900)
    ]
    assert torch.allclose(torch.stack(scores), scores[0].expand(3), rtol=0, atol=1e-10)
