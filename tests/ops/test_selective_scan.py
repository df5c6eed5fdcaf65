"""Every form of the selective scan against float64 autograd through the plain loop."""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from scans import Shape, draw, error, with_gradients
from torch import Tensor

from bkray.errors import ConfigError
from bkray.ops.lanes import exp2, load, store
from bkray.ops.selective_scan import FORMS, selective_scan

FLOAT64_ERROR = 1e-10
FLOAT32_ERROR = 4e-6
"""Of the largest number: 32 roundings of ``2^-24`` twice over, for sums over states, channels and
sites. The plain loop in float32 is 5e-7 off here, the fast forms 3e-7 to 1e-6."""
SHAPES: list[Shape] = [  # B, N, D, S
    (2, 37, 24, 5),
    (1, 64, 16, 16),
    (3, 131, 40, 4),
    (1, 1, 3, 1),
    (2, 300, 5, 2),
]
every_form = pytest.mark.parametrize("form", [form for form in FORMS if form != "triton"])
"""Triton on the CPU is an interpreter, which is slow: see ``test_selective_scan_triton``."""
fast_form = pytest.mark.parametrize("form", ["cpu", "torch"])


@pytest.fixture(autouse=True)
def two_threads(one_thread: None) -> None:
    torch.set_num_threads(2)


@functools.cache
def exact(shape: Shape) -> list[Tensor]:
    return with_gradients(draw(*shape), "reference")


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@every_form
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_and_gradients_are_those_of_float64_autograd(shape: Shape, form: str) -> None:
    for dtype, allowed in ((torch.float64, FLOAT64_ERROR), (torch.float32, FLOAT32_ERROR)):
        got = with_gradients(draw(*shape, dtype), form)
        assert all(t.dtype == dtype for t in got)
        assert max(error(*pair) for pair in zip(got, exact(shape), strict=True)) <= allowed


@every_form
def test_the_last_state_is_the_sum_that_the_equations_say(form: str) -> None:
    x, dt, rate, into, out, skip, state = draw(1, 9, 3, 2)
    y, last = selective_scan(x, dt, rate, into, out, skip, state, form=form)
    expected = state[0] * (dt[0].sum(0) * rate).exp()
    for t in range(9):
        decay = (dt[0, t + 1 :].sum(0) * rate).exp()
        expected = expected + decay * into[0, t, :, None] * (dt[0, t] * x[0, t])
    assert (last[0] - expected).abs().max() <= 1e-13
    assert (y[0, -1] - (out[0, -1] @ expected + skip * x[0, -1])).abs().max() <= 1e-13


@every_form
@pytest.mark.parametrize("stretch", [1e3, 1e6])
def test_steps_that_forget_everything_are_exact(form: str, stretch: float) -> None:
    """Decays underflow to denormals and to 0; nothing becomes a NaN, no gradient is lost."""
    shape = (2, 40, 17, 3)
    expected = with_gradients(draw(*shape, stretch=stretch), "reference")
    for dtype, allowed in ((torch.float64, FLOAT64_ERROR), (torch.float32, FLOAT32_ERROR)):
        got = with_gradients(draw(*shape, dtype, stretch), form)
        assert all(t.isfinite().all() for t in got)
        assert max(error(*pair) for pair in zip(got, expected, strict=True)) <= allowed


@every_form
def test_a_step_of_zero_leaves_the_states_as_they_are(form: str) -> None:
    x, dt, rate, into, out, skip, state = draw(2, 20, 5, 3, torch.float32)
    _, last = selective_scan(x, torch.zeros_like(dt), rate, into, out, skip, state, form=form)
    assert torch.equal(last, state)


@every_form
def test_a_long_memory_is_kept(form: str) -> None:
    """Steps of 1e-3 over 4,000 sites: a decay wrong in its last digit would show 4,000 times."""
    x, dt, rate, into, out, skip, state = draw(1, 4000, 4, 2, torch.float32)
    inputs = [0 * x, torch.full_like(dt, 1e-3), rate, into, out, skip, state]
    last = selective_scan(*inputs, form=form)[1].double()
    expected = state.double() * (4.0 * rate.double()).exp()
    assert ((last - expected) / expected).abs().max() <= 4000 * 2**-24


@every_form
def test_a_site_changes_nothing_before_itself(form: str) -> None:
    inputs = draw(1, 70, 6, 3)
    base, _ = selective_scan(*inputs, form=form)
    for site in (0, 1, 31, 32, 64, 69):
        for i in (0, 1, 3, 4):
            moved = [t.clone() for t in inputs]
            moved[i][:, site] += 1
            said, _ = selective_scan(*moved, form=form)
            assert torch.equal(said[:, :site], base[:, :site])
            assert (said[:, site] != base[:, site]).all()


@every_form
@pytest.mark.parametrize("cuts", [(1, 99), (32, 68), (64, 36), (5, 1, 93, 1)])
def test_a_sequence_in_pieces_is_the_sequence_in_one(form: str, cuts: tuple[int, ...]) -> None:
    x, dt, rate, into, out, skip, state = draw(2, 100, 7, 3)
    whole, last = selective_scan(x, dt, rate, into, out, skip, state, form=form)
    said = []
    for piece in zip(*(t.split(cuts, 1) for t in (x, dt, into, out)), strict=True):
        x_piece, dt_piece, *matrices = piece
        y, state = selective_scan(x_piece, dt_piece, rate, *matrices, skip, state, form=form)
        said.append(y)
    assert error(torch.cat(said, 1), whole) <= 1e-13
    assert error(state, last) <= 1e-13


@every_form
def test_a_nan_comes_out_from_its_site_on_and_in_its_gradients(form: str) -> None:
    inputs = draw(2, 80, 20, 3, torch.float32)
    inputs[0][0, 50, 17] = torch.nan
    leaves = [t.requires_grad_() for t in inputs]
    y, last = selective_scan(*leaves, form=form)
    expected = torch.zeros(2, 80, 20, dtype=torch.bool)
    expected[0, 50:, 17] = True
    assert torch.equal(y.isnan(), expected)
    assert torch.equal(last.isnan(), expected[:, -1:].expand_as(last))
    dx, ddt, drate, *_ = torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert ddt[0, 50:, 17].isnan().any() and drate[:, 17].isnan().all()
    assert dx[1].isfinite().all() and drate[:, :17].isfinite().all()


@every_form
@pytest.mark.parametrize("which", [1, 3, 6])
def test_a_nan_in_a_step_a_matrix_or_a_state_is_told(form: str, which: int) -> None:
    inputs = draw(2, 5, 4, 3, torch.float32)
    inputs[which][0, 2, 1] = torch.nan
    y, last = selective_scan(*inputs, form=form)
    assert y[0, 2:].isnan().any() and last[0].isnan().any()
    assert y[1].isfinite().all() and last[1].isfinite().all()


@every_form
def test_gradients_are_those_of_finite_differences(form: str) -> None:
    leaves = [t.requires_grad_() for t in draw(2, 4, 3, 2)]
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, form=form), leaves)


@fast_form
def test_a_second_derivative_is_refused(form: str) -> None:
    leaves = [t.requires_grad_() for t in draw(1, 3, 2, 2)]
    total = selective_scan(*leaves, form=form)[0].square().sum()
    (first,) = torch.autograd.grad(total, leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@fast_form
def test_the_gradient_of_the_last_state_alone_is_enough(form: str) -> None:
    leaves = [t.requires_grad_() for t in draw(2, 40, 5, 3)]
    got = torch.autograd.grad(
        selective_scan(*leaves, form=form)[1].square().sum(), [leaves[0], leaves[6]]
    )
    last = selective_scan(*leaves, form="reference")[1]
    expected = torch.autograd.grad(last.square().sum(), [leaves[0], leaves[6]])
    assert max(error(*pair) for pair in zip(got, expected, strict=True)) <= 1e-13


@every_form
def test_strided_and_expanded_tensors_are_read_as_they_are(form: str) -> None:
    x, dt, rate, into, out, skip, state = draw(2, 21, 16, 3)
    rate = rate[:, :1].expand(3, 16)
    given = [x, dt, rate.clone(), into, out, skip, torch.zeros_like(state)]
    expected = with_gradients(given, form)
    joint = torch.cat([into, out], -1)
    swapped = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    empty = torch.zeros(1, 1, 1).double().expand(2, 3, 16)
    got = with_gradients([swapped, dt, rate, joint[..., :3], joint[..., 3:], skip, empty], form)
    assert max(error(*pair) for pair in zip(got, expected, strict=True)) <= 1e-13


@every_form
def test_low_precision_is_raised_to_float32_also_under_autocast(form: str) -> None:
    low = [t.bfloat16() for t in draw(1, 9, 4, 3)]
    expected = selective_scan(*(t.float() for t in low), form=form)
    with torch.autocast("cpu", torch.bfloat16):
        got = selective_scan(*low, form=form)
    assert got[0].dtype == torch.float32
    assert equal(list(got), list(expected))


def test_auto_takes_the_cpu_form_for_tensors_there() -> None:
    inputs = draw(2, 9, 4, 3, torch.float32)
    auto, cpu = selective_scan(*inputs), selective_scan(*inputs, form="cpu")
    assert equal(list(auto), list(cpu))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_number_of_threads_changes_nothing_while_there_are_rows(dtype: torch.dtype) -> None:
    inputs = draw(8, 300, 20, 4, dtype)
    expected = with_gradients(inputs, "cpu")
    for n_threads in (1, 2, 4):
        torch.set_num_threads(n_threads)
        assert equal(with_gradients(inputs, "cpu"), expected)


@pytest.mark.parametrize("n_threads", [2, 3, 5])
def test_threads_share_the_channels_of_a_row(n_threads: int) -> None:
    inputs = draw(1, 700, 56, 4)
    expected = with_gradients(inputs, "torch")
    torch.set_num_threads(n_threads)
    got = with_gradients(inputs, "cpu")
    assert max(error(*pair) for pair in zip(got, expected, strict=True)) <= 1e-13


def test_several_python_threads_at_once_give_the_same_numbers() -> None:
    inputs = draw(8, 300, 20, 4, torch.float32)
    expected = with_gradients(inputs, "cpu")
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(with_gradients, inputs, "cpu") for _ in range(8)]
        assert all(equal(job.result(), expected) for job in jobs)


@pytest.mark.parametrize(
    ("which", "shape", "message"),
    [
        (0, (2, 0, 3), "N at least 1"),
        (1, (2, 5, 4), r"dt must be \(2, 5, 3\), got \(2, 5, 4\)"),
        (2, (4, 2), r"rate must be \(S, D=3\)"),
        (3, (2, 5, 1), r"into must be \(2, 5, 4\)"),
        (4, (2, 4, 4), "out must be"),
        (5, (1,), "skip must be"),
        (6, (2, 3, 4), "state must be"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    which: int, shape: tuple[int, ...], message: str
) -> None:
    inputs = draw(2, 5, 3, 4)
    inputs[which] = torch.ones(shape)
    with pytest.raises(ConfigError, match=message):
        selective_scan(*inputs)


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(ConfigError, match="got 'fast'"):
        selective_scan(*draw(1, 2, 3, 4), form="fast")


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def _powers(x: Any, said: Any, width: Any) -> None:
    for first in range(0, len(x), len(width)):
        store(said, (first,), exp2(load(x, (first,), width)), None)


@pytest.mark.parametrize(
    ("dtype", "allowed"), [(np.float32, 1.2e-7), (np.float64, 2e-15)], ids=str
)
def test_powers_of_two_are_right_over_the_whole_range(dtype: Any, allowed: float) -> None:
    ends = np.finfo(dtype)
    x = np.linspace(ends.minexp, ends.maxexp - 0.5, 1 << 16).astype(dtype)[: (1 << 16) - 8]
    said, wide = np.empty_like(x), x.astype(np.longdouble)
    _powers(x, said, (0,) * 8)
    assert float(np.abs(said / np.exp2(wide) - 1).max()) <= allowed
    x = np.array([0, -0.0, 1, -1, np.nan, np.inf, -np.inf, ends.minexp - 1, 1e30, -1e30, 2, -2])
    said = np.empty(16, dtype)
    _powers(np.resize(x, 16).astype(dtype), said, (0,) * 8)
    expected = [1, 1, 2, 0.5, np.nan, np.inf, 0, 0, np.inf, 0, 4, 0.25]
    assert np.array_equal(said[:12], np.array(expected, dtype), equal_nan=True)
