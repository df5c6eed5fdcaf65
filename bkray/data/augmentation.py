"""Changes to training rows: spans of frames masked, noise, or another row mixed in.

Masking and noise are of what the model reads; what it is to say stays as it was. A mixture is a
row of its own, read and said. Letters: B batch, L frames, D width.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Augmentation = Literal["off", "masking", "noise", "mixup", "all"]

MASKED_SHARE = 0.1
"""Longest span of frames that is set to 0, as a share of the row."""
NOISE_SHARE = 0.1
"""Standard deviation of the noise, as a share of the row's root mean square."""


class Augmented(NamedTuple):
    """Rows to read, and what is to be made of them."""

    read_BLD: Tensor
    target_BLD: Tensor


def augmented(
    x_BLD: Tensor,
    labels_B: Tensor | None,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> Augmented:
    """Return the rows under one augmentation, or ``all`` three: mixed first, then noisy, masked.

    Args:
        labels_B: (B,), whole numbers: rows are mixed within their class; ``None`` for any row.
        generator: on the rows' device.
    """
    target_BLD = x_BLD
    if augmentation in ("mixup", "all"):
        target_BLD = mixed_up(x_BLD, labels_B, generator)
    read_BLD = target_BLD
    if augmentation in ("noise", "all"):
        read_BLD = noisy(read_BLD, generator)
    if augmentation in ("masking", "all"):
        read_BLD = masked(read_BLD, generator)
    return Augmented(read_BLD, target_BLD)


def masked(x_BLD: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows with one span of frames each set to 0, from none to ``MASKED_SHARE``."""
    n_rows, n_frames, _ = x_BLD.shape
    longest = int(MASKED_SHARE * n_frames)
    length_B1 = _whole(longest + 1, n_rows, generator)
    share_B1 = torch.rand(n_rows, 1, generator=generator, device=generator.device)
    first_B1 = (share_B1 * (n_frames - length_B1 + 1)).long()
    site_L = torch.arange(n_frames, device=x_BLD.device)
    hidden_BL = (site_L >= first_B1) & (site_L < first_B1 + length_B1)
    # Filled, not multiplied by 0: a NaN is never repaired, and one beside the span stays too.
    return x_BLD.masked_fill(hidden_BL[..., None], 0)


def noisy(x_BLD: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows plus white noise of ``NOISE_SHARE`` of each row's root mean square."""
    size_B11 = x_BLD.square().mean((1, 2), keepdim=True).sqrt()
    noise_BLD = torch.empty_like(x_BLD).normal_(generator=generator)
    return x_BLD + NOISE_SHARE * size_B11 * noise_BLD


def mixed_up(x_BLD: Tensor, labels_B: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return each row mixed with another one of its class, in shares from 1/2 to 1 of its own.

    Classes stay what they are, since no row is mixed across them; a row that is alone in its
    class may be mixed with itself.
    """
    n_rows = len(x_BLD)
    order_B = torch.randperm(n_rows, generator=generator, device=generator.device)
    other_B = order_B
    if labels_B is not None:
        # Sorting by class pairs the k-th of a class in one order with the k-th in another one.
        again_B = torch.randperm(n_rows, generator=generator, device=generator.device)
        by_class_B = order_B[labels_B[order_B].argsort(stable=True)]
        other_B = torch.empty_like(order_B)
        other_B[by_class_B] = again_B[labels_B[again_B].argsort(stable=True)]
    share_B11 = torch.rand(n_rows, 1, 1, generator=generator, device=generator.device)
    own_B11 = (1 - share_B11 / 2).to(x_BLD.dtype)
    return own_B11 * x_BLD + (1 - own_B11) * x_BLD[other_B]


def _whole(end: int, n_rows: int, generator: torch.Generator) -> Tensor:
    return torch.randint(end, (n_rows, 1), generator=generator, device=generator.device)
