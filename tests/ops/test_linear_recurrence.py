"""The gated linear recurrence against its plain form and a dense matrix."""

import pytest
import torch
from torch import Tensor

from bkray.ops.linear_recurrence import doubling, reference

LENGTHS = (1, 2, 3, 7, 8, 9, 64, 65)


def gates_and_inputs(n_sites: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(n_sites)
    gate_BND = torch.rand(2, n_sites, 3, dtype=dtype, generator=draw)
    return gate_BND, torch.randn(2, n_sites, 3, dtype=dtype, generator=draw)


@pytest.mark.parametrize("n_sites", LENGTHS)
def test_doubling_says_what_the_reference_says(n_sites: int) -> None:
    gate, given = gates_and_inputs(n_sites)
    assert (doubling(gate, given) - reference(gate, given)).abs().max() <= 1e-13


@pytest.mark.parametrize("n_sites", LENGTHS)
def test_what_was_before_is_a_first_site_more(n_sites: int) -> None:
    gate, given = gates_and_inputs(n_sites)
    before = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    longer = reference(
        torch.cat([torch.zeros_like(gate[:, :1]), gate], dim=1),
        torch.cat([before[:, None], given], dim=1),
    )
    assert (doubling(gate, given, before) - longer[:, 1:]).abs().max() <= 1e-13


def test_the_reference_is_a_lower_triangular_matrix_of_gate_products() -> None:
    gate, given = gates_and_inputs(9)
    dense = torch.zeros(2, 9, 9, 3, dtype=torch.float64)
    for t in range(9):
        for s in range(t + 1):
            dense[:, t, s] = gate[:, s + 1 : t + 1].prod(dim=1)
    expected = torch.einsum("btsd,bsd->btd", dense, given)
    assert (reference(gate, given) - expected).abs().max() <= 1e-13


@pytest.mark.parametrize("form", [reference, doubling])
def test_gradients_pass_a_finite_difference_check(form) -> None:
    gate, given = (part.requires_grad_() for part in gates_and_inputs(6))
    assert torch.autograd.gradcheck(form, (gate, given))


def test_a_closed_gate_forgets_everything() -> None:
    gate, given = gates_and_inputs(8)
    gate[:, 4] = 0.0
    louder = given.clone()
    louder[:, :4] *= 1e6
    assert torch.equal(doubling(gate, given)[:, 4:], doubling(gate, louder)[:, 4:])


def test_an_open_gate_adds_up() -> None:
    gate, given = gates_and_inputs(8)
    assert (doubling(torch.ones_like(gate), given) - given.cumsum(1)).abs().max() <= 1e-13


def test_no_site_sees_a_later_one() -> None:
    gate, given = gates_and_inputs(16)
    before = doubling(gate, given)
    for t in range(15):
        other_gate, other = gate.clone(), given.clone()
        other_gate[:, t + 1 :] = 0.5
        other[:, t + 1 :] += 1.0
        after = doubling(other_gate, other)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.equal(after[:, t + 1], before[:, t + 1])


def test_a_nan_stays_from_its_site_on_and_touches_no_earlier_one() -> None:
    gate, given = gates_and_inputs(16)
    given[0, 5, 1] = torch.nan
    said = doubling(gate, given)
    assert said[0, 5:, 1].isnan().all()
    said[0, 5:, 1] = 0.0
    assert said.isfinite().all()


def test_float32_keeps_seven_digits_over_a_thousand_sites() -> None:
    gate, given = gates_and_inputs(1000)
    single = doubling(gate.float(), given.float())
    assert single.dtype == torch.float32
    error = (single - reference(gate, given)).abs().max() / reference(gate, given).abs().max()
    assert error <= 1e-6
