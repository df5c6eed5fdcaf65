"""Changes to training rows."""

import pytest
import torch
from torch import Tensor

from bkray.data.augmentation import MASKED_SHARE, NOISE_SHARE, augmented, masked, mixed_up, noisy

B, L, D = 40, 30, 3


def rows() -> Tensor:
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(1)) + 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_span_a_row_is_masked_and_nothing_else() -> None:
    x = rows()
    hidden_BL = (masked(x, seeded()) == 0).all(2)
    assert torch.equal(masked(x, seeded())[~hidden_BL], x[~hidden_BL])
    assert hidden_BL.sum(1).max() == int(MASKED_SHARE * L), "the longest span"
    assert hidden_BL.sum(1).min() == 0
    starts_B = (hidden_BL[:, 1:] & ~hidden_BL[:, :-1]).sum(1) + hidden_BL[:, 0]
    assert starts_B.max() == 1


def test_noise_is_a_share_of_each_row() -> None:
    x = rows() * torch.logspace(-2, 2, B)[:, None, None]
    share_B = (noisy(x, seeded()) - x).square().mean((1, 2)).sqrt() / x.square().mean(
        (1, 2)
    ).sqrt()
    assert (share_B / NOISE_SHARE - 1).abs().max() < 0.3


def test_rows_are_mixed_within_their_class_and_are_mostly_themselves() -> None:
    label_B = torch.arange(B) % 3
    x = 10.0 * label_B[:, None, None].expand(B, L, D) + torch.rand(B, 1, 1)
    mixed = mixed_up(x, label_B, seeded())
    assert torch.equal((mixed / 10).floor().long()[:, 0, 0], label_B)
    assert (mixed != x).any(2).all(1).sum() > B / 2
    own_BB = torch.eye(B)[..., None]
    share_BB = mixed_up(own_BB, None, seeded())[..., 0]
    assert torch.allclose(share_BB.sum(1), torch.ones(B))
    assert share_BB.diagonal().min() >= 0.5
    assert (share_BB > 0).sum(1).max() == 2


def test_masking_and_noise_change_what_is_read_and_mixing_what_is_said_too() -> None:
    x = rows()
    for name in ("off", "masking", "noise"):
        read, target = augmented(x, None, name, seeded())
        assert torch.equal(target, x)
        assert torch.equal(read, x) == (name == "off")
    read, target = augmented(x, None, "mixup", seeded())
    assert torch.equal(read, target) and not torch.equal(target, x)
    read, target = augmented(x, None, "all", seeded())
    assert not torch.equal(read, target) and not torch.equal(target, x)


@pytest.mark.parametrize("name", ["masking", "noise", "mixup", "all"])
def test_the_generator_decides_all(name: str) -> None:
    first, again, other = (augmented(rows(), None, name, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first.read_BLD, again.read_BLD)
    assert not torch.equal(first.read_BLD, other.read_BLD)


@pytest.mark.parametrize("name", ["off", "noise", "mixup"])
def test_a_nan_stays(name: str) -> None:
    x = rows()
    x[0, 0, 0] = torch.nan
    assert augmented(x, None, name, seeded()).read_BLD[0, 0, 0].isnan()
