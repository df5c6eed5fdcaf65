"""A retrieval probe: is the embedding of an item nearest to that of its noisy copy?

An item is embedded as the last token's hidden state and sent through a linear projection that was
fitted at the train length. Half of the items come as twins that differ in their second half alone:
who cuts it off cannot tell them apart. The twins are planted: that they merge says nothing of how
often natural text does. Letters: I items, N sites, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular
from torch.nn.functional import cosine_similarity

NOISE = 0.2
"""Share of the tokens that a copy has from elsewhere: at half of it small models find nearly all
items, at twice of it half of them, and differences show best between."""

RIDGE = 1e-2
"""Added to the noise's covariance, in mean variances: few pairs do not span all channels."""

TIE = 1e-6
"""Similarities no further apart are equal: rows of one text differ by rounding in a batch."""


class Ranking(NamedTuple):
    """How well copies find their items; equals count as if drawn in random order."""

    mrr: float
    """Mean of 1 over the rank of the right item."""
    recall: float
    """Share of the copies whose item comes first."""


class Projection(NamedTuple):
    """A linear map in which what copies differ by from their items has the same size everywhere.

    Source: relevant component analysis, Bar-Hillel et al. 2003, ICML, 11-18.
    """

    mean_D: Tensor
    root_DD: Tensor

    def __call__(self, state_ID: Tensor) -> Tensor:
        centred_DI = (state_ID.double() - self.mean_D).T
        whitened: Tensor = solve_triangular(self.root_DD, centred_DI, upper=False).T
        return whitened


def fit(item_ID: Tensor, copy_ID: Tensor) -> Projection:
    """Return the projection that pairs of an item and its noisy copy ask for, in closed form."""
    item_ID, copy_ID = item_ID.double(), copy_ID.double()
    noise_ID = item_ID - copy_ID
    covariance_DD = noise_ID.T @ noise_ID / len(noise_ID)
    ridge = RIDGE * covariance_DD.diagonal().mean()
    # Not the form that raises: a NaN stays one and is reported with the ranking.
    root_DD = cholesky_ex(covariance_DD + ridge * torch.eye(len(covariance_DD)).double()).L
    return Projection(torch.cat([item_ID, copy_ID]).mean(0), root_DD)


def twinned(tokens_IN: Tensor) -> Tensor:
    """Return the items with every second of the first half given the first half of its twin."""
    items_IN = tokens_IN.clone()
    n_twins, half = len(items_IN) // 4, items_IN.shape[1] // 2
    items_IN[1 : 2 * n_twins : 2, :half] = items_IN[0 : 2 * n_twins : 2, :half]
    return items_IN


def noisy(tokens_IN: Tensor) -> Tensor:
    """Return the items with a share of their tokens drawn from all of them; always the same."""
    draw = torch.Generator().manual_seed(0)
    pool = tokens_IN.flatten()
    others_IN = pool[torch.randint(len(pool), tokens_IN.shape, generator=draw)]
    return torch.where(torch.rand(tokens_IN.shape, generator=draw) < NOISE, others_IN, tokens_IN)


def n_identical(items_IN: Tensor, n_kept: int) -> int:
    """Return how many distinct items share their first ``n_kept`` tokens with another one."""
    distinct = torch.unique(items_IN, dim=0)
    _, count = torch.unique(distinct[:, :n_kept], dim=0, return_counts=True)
    return int(count[count > 1].sum())


def ranking(copy_ID: Tensor, item_ID: Tensor) -> Ranking:
    """Rank all items by their cosine with each copy; a state that is not finite gives NaN."""
    similar_II = cosine_similarity(copy_ID[:, None], item_ID[None], dim=-1)
    if not similar_II.isfinite().all():
        return Ranking(float("nan"), float("nan"))
    own_I1 = similar_II.diagonal()[:, None]
    n_above_I = (similar_II > own_I1 + TIE).sum(1)
    n_equal_I = ((similar_II - own_I1).abs() <= TIE).sum(1)  # itself among them
    reciprocal = [
        sum(1 / (above + k) for k in range(1, equal + 1)) / equal
        for above, equal in zip(n_above_I.tolist(), n_equal_I.tolist(), strict=True)
    ]
    recall_I = torch.where(n_above_I == 0, 1 / n_equal_I.double(), 0.0)
    return Ranking(sum(reciprocal) / len(reciprocal), float(recall_I.mean()))
