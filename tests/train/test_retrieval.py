"""The retrieval probe on items whose answers are known."""

import math

import pytest
import torch
from tiny import random_tokens

from bkray.train.retrieval import NOISE, Projection, fit, n_identical, noisy, ranking, twinned

WHOLE = Projection(torch.zeros(4).double(), torch.eye(4).double())


def test_copies_that_equal_their_items_find_them() -> None:
    items = torch.eye(4).double()
    assert ranking(WHOLE(items), WHOLE(items)) == (1.0, 1.0)


def test_ranks_are_counted_from_the_nearest() -> None:
    items = torch.eye(3).double()
    copies = torch.tensor([[1.0, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]]).double()
    seen = ranking(copies, items)
    assert seen.mrr == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert seen.recall == pytest.approx(1 / 3)


def test_equal_items_are_found_as_if_drawn() -> None:
    items = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double()
    seen = ranking(items, items)
    assert seen.mrr == pytest.approx((0.75 + 0.75 + 1) / 3)
    assert seen.recall == pytest.approx((0.5 + 0.5 + 1) / 3)
    rounded = items + torch.tensor([[0.0, 1e-9], [0.0, 0.0], [0.0, 0.0]])
    assert ranking(rounded, rounded) == pytest.approx(seen)


def test_a_state_that_is_no_number_is_told() -> None:
    items = torch.eye(3).double()
    items[1, 1] = math.nan
    assert all(map(math.isnan, ranking(items, items)))
    assert all(map(math.isnan, ranking(*(fit(items, items * 2)(x) for x in (items, items)))))


def test_half_of_the_items_are_twins_up_to_their_middle() -> None:
    tokens = random_tokens(16, 20)
    items = twinned(tokens)
    assert n_identical(tokens, 20) == n_identical(tokens, 10) == 0
    assert n_identical(items, 20) == 0
    assert n_identical(items, 10) == 8
    changed = (items != tokens).any(1)
    assert int(changed.sum()) == 4
    assert torch.equal(items[:, 10:], tokens[:, 10:])


def test_items_that_were_equal_before_are_not_merged() -> None:
    items = torch.tensor([[1, 2], [1, 2], [1, 3], [4, 5]])
    assert n_identical(items, 2) == 0
    assert n_identical(items, 1) == 2  # of three distinct ones


def test_copies_are_the_same_every_time_and_differ_by_the_noise() -> None:
    items = random_tokens(64, 100)
    assert torch.equal(noisy(items), noisy(items))
    changed = float((noisy(items) != items).double().mean())
    assert changed == pytest.approx(NOISE * 10 / 11, abs=0.02)  # one draw in eleven is the same


def test_the_projection_learns_to_look_past_the_noise() -> None:
    """One channel is all noise and tells nothing; the rest is what items differ by."""
    draw = torch.Generator().manual_seed(0)

    def pairs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        items = torch.randn(n, 6, generator=draw).double()
        copies = items + 0.05 * torch.randn(n, 6, generator=draw)
        items[:, 0], copies[:, 0] = (4 * torch.randn(n, generator=draw) for _ in range(2))
        return items, copies

    project = fit(*pairs(200))
    items, copies = pairs(50)
    assert ranking(copies, items).recall < 0.5
    assert ranking(project(copies), project(items)).recall > 0.9
