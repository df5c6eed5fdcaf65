"""The Mamba mixer: where it starts, what it carries, what padding may not do."""

import pytest
import torch
from tiny import tiny_config
from torch import Tensor
from torch.nn.functional import softplus

from bkray.nn.build import mixer
from bkray.nn.mamba import CONV_SITES, STEPS, MambaMixer

WIDTH, STATES = 32, 5


def mamba(dtype: torch.dtype = torch.float64) -> MambaMixer:
    torch.manual_seed(0)
    return MambaMixer(WIDTH, STATES).to(dtype)


def hidden(n_rows: int = 2, n_sites: int = 9, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n_rows, n_sites, WIDTH, dtype=dtype, generator=generator)


def counted(hidden_BND: Tensor) -> Tensor:
    return torch.arange(hidden_BND.shape[1]).expand(hidden_BND.shape[:2])


def test_it_starts_with_the_rates_steps_and_skip_of_its_source() -> None:
    made = mamba()
    rate_SE = made.log_rate.exp().view(STATES, 2 * WIDTH)
    assert torch.allclose(rate_SE[:, 3], torch.arange(1, STATES + 1).double(), rtol=1e-6)
    step_E = softplus(made.step.bias)
    assert STEPS[0] <= step_E.min() and step_E.max() <= STEPS[1]
    assert step_E.log().std() > 1, "spread over the whole range"
    assert made.skip.eq(1).all()


def test_the_config_sets_the_states_and_the_inner_width() -> None:
    made = mixer(tiny_config("mamba", **{"model.d_state": 7, "model.expand": 3}).model)
    assert isinstance(made, MambaMixer)
    assert (made.d_state, made.d_inner, made.rank) == (7, 48, 1)


@torch.no_grad()
def test_what_is_carried_is_three_sites_and_the_states() -> None:
    given = hidden()
    _, (tail, states) = mamba().stream(given, counted(given))
    assert tail.shape == (2, CONV_SITES - 1, 2 * WIDTH)
    assert states.shape == (2, STATES, 2 * WIDTH)


@torch.no_grad()
@pytest.mark.parametrize("n_own", [0, 1, 2, 3, 8])
def test_a_nan_in_the_padding_changes_nothing(n_own: int) -> None:
    made, start, given = mamba(), hidden(n_sites=5), hidden()
    _, before = made.stream(start, counted(start))
    own = given[:, :n_own]
    expected = made.stream(own, counted(own), None, before)[1] if n_own else before
    there = (counted(given) < n_own).clone()
    there[1] = True
    given[0, n_own:] = torch.nan
    _, behind = made.stream(given, counted(given), there, before)
    for part, wanted in zip(behind, expected, strict=True):
        assert (part[0] - wanted[0]).abs().max() <= 1e-14
        assert not torch.equal(part[1], wanted[1])


@torch.no_grad()
def test_a_row_without_own_sites_keeps_its_state_to_the_last_digit() -> None:
    made, given = mamba(torch.float32), hidden(dtype=torch.float32)
    _, before = made.stream(given, counted(given))
    nobody = torch.zeros(2, 9, dtype=torch.bool)
    _, behind = made.stream(hidden(dtype=torch.float32), counted(given), nobody, before)
    assert all(torch.equal(*pair) for pair in zip(before, behind, strict=True))


@torch.no_grad()
def test_steps_and_states_stay_in_float32_under_bf16_autocast() -> None:
    """In bf16 a step of 1e-3, softplus of -6.9, would be wrong by up to 1.6%."""
    made, low = mamba(torch.float32), torch.randn(2, 9, 2)
    expected = made._steps(low)
    given = hidden(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made._steps(low), expected)
        _, carried = made.stream(given, counted(given))
    assert all(part.dtype == torch.float32 for part in carried)
