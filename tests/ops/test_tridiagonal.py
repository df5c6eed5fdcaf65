"""Every form of the causal resolvent against float64 autograd, dense inverses and its bounds."""

import functools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from resolvents import Shape, draw, error, with_gradients
from torch import Tensor

from bkray.errors import ConfigError
from bkray.ops import tridiagonal_cpu
from bkray.ops.tridiagonal import FORMS, causal_resolvent, halo_sites, two_sided_resolvent

FLOAT64_ERROR = 1e-10
FLOAT32_ERROR = 1e-5
"""Times ``max(1, 0.02 / eta)``, for the median draw: near a resonance of a chain any float32 form,
the plain loop too, answers the rounding of ``h - E - g`` by up to ``1 / eta^2``."""
N_DRAWS = 5
SHAPES: list[Shape] = [  # B, N, K, H, smallest eta
    (2, 37, 1, 3, 0.02),
    (1, 64, 0, 3, 0.02),
    (3, 17, 4, 3, 0.1),
    (1, 1, 1, 3, 0.02),
    (2, 301, 1, 20, 0.001),
]
HERE = [form for form in FORMS if form != "triton"]
"""Triton may be missing, wants a GPU's tensors, and is slow elsewhere: see
``test_tridiagonal_triton``."""
every_form = pytest.mark.parametrize("form", HERE)


@pytest.fixture(autouse=True)
def two_threads(one_thread: None) -> None:
    torch.set_num_threads(2)


def n_chunks_of_time(h: Tensor, *inputs: Tensor) -> int:
    """Into how many the CPU form cuts this sequence, with the threads of these tests."""
    return len(tridiagonal_cpu._plan(*h.shape, inputs[2].detach()).chunks)


@functools.cache
def exact(shape: Shape, seed: int) -> list[Tensor]:
    return with_gradients(draw(*shape, torch.float64, seed), "reference")


def errors(shape: Shape, dtype: torch.dtype, form: str) -> Tensor:
    """(N_DRAWS, 6): of the features and the five gradients, against float64 autograd."""
    drawn = []
    for seed in range(N_DRAWS):
        got = with_gradients(draw(*shape, dtype, seed), form)
        assert all(t.dtype == dtype for t in got)
        drawn.append([error(*pair) for pair in zip(got, exact(shape, seed), strict=True)])
    return torch.tensor(drawn)


def dense_inverse(h_N: Tensor, z: Tensor) -> Tensor:
    """``(H - z)^-1`` of a whole chain, as a matrix."""
    ones = torch.ones(len(h_N) - 1, dtype=h_N.dtype)
    matrix = torch.diag(h_N) + torch.diag(ones, 1) + torch.diag(ones, -1)
    return torch.linalg.inv(matrix - z * torch.eye(len(h_N), dtype=h_N.dtype))


@every_form
@pytest.mark.parametrize("shape", SHAPES)
def test_features_and_gradients_are_those_of_float64_autograd(shape: Shape, form: str) -> None:
    assert errors(shape, torch.float64, form).max() <= FLOAT64_ERROR
    float32_error = errors(shape, torch.float32, form).median(0).values.max()
    assert float32_error <= FLOAT32_ERROR * max(1, 0.02 / shape[-1])


@every_form
@pytest.mark.parametrize("eta", [0.5, 0.01])
def test_the_last_site_of_every_prefix_is_that_of_a_dense_inverse(form: str, eta: float) -> None:
    h, x, energy, eta_H, _ = draw(1, 12, 2, 3, eta, torch.float64)
    features = causal_resolvent(h, x, energy, eta_H, form=form)
    for head in range(3):
        for t in range(12):
            inverse = dense_inverse(h[0, : t + 1, head], torch.complex(energy, eta_H)[head])
            y_K = inverse[-1] @ x[0, : t + 1, :, head].to(inverse.dtype)
            expected_P = torch.cat((inverse[-1, -1:], y_K))
            got_P = torch.complex(features[0, t, [0, 2, 3], head], features[0, t, [1, 4, 5], head])
            assert (got_P - expected_P).abs().max() <= 1e-10 * expected_P.abs().max().clamp(min=1)


@every_form
def test_the_features_stay_within_their_bounds(form: str) -> None:
    h, x, energy, eta, _ = draw(2, 300, 2, 3, 0.003, torch.float64)
    features = causal_resolvent(h, x, energy, eta, form=form)
    g_BNH = torch.complex(features[:, :, 0], features[:, :, 1])
    y_BNKH = torch.complex(features[:, :, 2:4], features[:, :, 4:6])
    assert (g_BNH.imag > 0).all()
    assert (g_BNH.abs() <= (1 + 1e-12) / eta).all()
    norms_BNKH = x.square().cumsum(1).sqrt()
    assert (y_BNKH.abs() <= (1 + 1e-12) * norms_BNKH / eta).all()


@every_form
def test_a_site_changes_nothing_before_itself(form: str) -> None:
    h, x, energy, eta, state = draw(1, 40, 1, 3, 0.02, torch.float64)
    base = causal_resolvent(h, x, energy, eta, state, form=form)
    for site in (0, 1, 22, 39):
        h_moved, x_moved = h.clone(), x.clone()
        h_moved[:, site] += 1
        x_moved[:, site] += 1
        moved = causal_resolvent(h_moved, x_moved, energy, eta, state, form=form)
        assert torch.equal(moved[:, :site], base[:, :site])
        assert (moved[:, site] != base[:, site]).all()


@every_form
@pytest.mark.parametrize("cuts", [(1, 36), (17, 20), (5, 1, 30, 1)])
def test_a_sequence_in_pieces_is_the_sequence_in_one(form: str, cuts: tuple[int, ...]) -> None:
    h, x, energy, eta, state = draw(2, 37, 2, 3, 0.02, torch.float64)
    whole = causal_resolvent(h, x, energy, eta, state, form=form)
    pieces = []
    for h_piece, x_piece in zip(h.split(cuts, 1), x.split(cuts, 1), strict=True):
        pieces.append(causal_resolvent(h_piece, x_piece, energy, eta, state, form=form))
        state = pieces[-1][:, -1]
    assert error(torch.cat(pieces, 1), whole) <= 1e-12


@every_form
def test_a_nan_comes_out_from_its_site_on_and_in_its_gradients(form: str) -> None:
    h, x, energy, eta, _ = draw(1, 12, 1, 3, 0.1, torch.float32)
    h[0, 5, 0] = torch.nan  # poisons g and y of head 0
    x[0, 8, 0, 1] = torch.nan  # poisons y of head 1, not its g
    h.requires_grad_()
    features = causal_resolvent(h, x, energy, eta, form=form)
    expected = torch.zeros(12, 4, 3, dtype=torch.bool)
    expected[5:, :, 0] = expected[8:, 2:, 1] = True
    assert torch.equal(features[0].isnan(), expected)
    (grad,) = torch.autograd.grad(features, h, torch.ones_like(features))
    assert torch.equal(grad[0].isnan().all(0), torch.tensor([True, True, False]))


@every_form
def test_gradients_are_those_of_finite_differences(form: str) -> None:
    leaves = [t.requires_grad_() for t in draw(2, 5, 2, 2, 0.3, torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: causal_resolvent(*t, form=form), leaves)


@pytest.mark.parametrize("form", ["cpu", "torch"])
def test_a_second_derivative_is_refused(form: str) -> None:
    leaves = [t.requires_grad_() for t in draw(1, 3, 1, 2, 0.3, torch.float64)]
    total = causal_resolvent(*leaves, form=form).square().sum()
    (first,) = torch.autograd.grad(total, leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@every_form
def test_strided_and_expanded_tensors_are_read_as_they_are(form: str) -> None:
    h, x, energy, eta, _ = draw(2, 21, 1, 3, 0.05, torch.float64)
    expected = with_gradients([h, x, energy, eta, torch.zeros(2, 4, 3).double()], form)
    joint = torch.cat((h.unsqueeze(2), x), 2)
    swapped = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    empty = torch.zeros(1, 4, 1).double().expand(2, 4, 3)
    got = with_gradients([joint[:, :, 0], swapped, energy, eta, empty], form)
    assert [error(*pair) for pair in zip(got, expected, strict=True)] == pytest.approx(
        [0] * 6, abs=1e-13
    )
    leaf = h.clone().requires_grad_()
    causal_resolvent(leaf, x, energy, eta, form=form).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


@every_form
def test_low_precision_is_raised_to_float32_also_under_autocast(form: str) -> None:
    h, x, energy, eta, _ = draw(1, 9, 1, 3, 0.05, torch.float32)
    low_h, low_x = h.bfloat16(), x.bfloat16()
    expected = causal_resolvent(low_h.float(), low_x.float(), energy, eta, form=form)
    with torch.autocast("cpu", torch.bfloat16):
        got = causal_resolvent(low_h, low_x, energy, eta, form=form)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_auto_takes_the_cpu_form_for_tensors_there() -> None:
    inputs = draw(2, 9, 1, 3, 0.05, torch.float32)
    assert torch.equal(causal_resolvent(*inputs), causal_resolvent(*inputs, form="cpu"))


@every_form
@pytest.mark.parametrize("shape", [(2, 14, 3, 3, 0.02), (1, 1, 1, 3, 0.02), (1, 9, 0, 3, 0.3)])
def test_the_two_sided_resolvent_is_a_dense_inverse_on_the_values(form: str, shape: Shape) -> None:
    h, x, energy, eta, _ = draw(*shape, torch.float64)
    K = x.shape[2]
    features = two_sided_resolvent(h, x, energy, eta, form=form)
    for row in range(len(h)):
        for head in range(3):
            inverse = dense_inverse(h[row, :, head], torch.complex(energy, eta)[head])
            expected_NF = torch.cat(
                (inverse.diagonal()[:, None], inverse @ x[row, :, :, head].to(inverse.dtype)), 1
            )
            of_head = features[row, :, :, head]
            real = torch.cat((of_head[:, :1], of_head[:, 2 : 2 + K]), 1)
            imag = torch.cat((of_head[:, 1:2], of_head[:, 2 + K :]), 1)
            worst = (torch.complex(real, imag) - expected_NF).abs().max()
            assert worst <= 1e-10 * expected_NF.abs().max().clamp(min=1)


@every_form
def test_the_two_sided_resolvent_stays_within_its_bounds(form: str) -> None:
    h, x, energy, eta, _ = draw(2, 300, 2, 3, 0.003, torch.float64)
    features = two_sided_resolvent(h, x, energy, eta, form=form)
    g_BNH = torch.complex(features[:, :, 0], features[:, :, 1])
    assert (g_BNH.abs() * eta <= 1 + 1e-12).all()
    assert (g_BNH.imag > 0).all()
    norm_BKH = torch.complex(features[:, :, 2:4], features[:, :, 4:]).norm(dim=1)
    assert (norm_BKH * eta <= x.norm(dim=1) * (1 + 1e-12)).all()


def test_two_sided_gradients_are_those_of_the_reference() -> None:
    h, x, energy, eta, _ = draw(2, 23, 2, 3, 0.02, torch.float64)
    grads = {}
    for form in HERE:
        leaves = [t.detach().requires_grad_() for t in (h, x, energy, eta)]
        features = two_sided_resolvent(*leaves, form=form)
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
        grads[form] = torch.autograd.grad(features, leaves, weights.double())
    for form in HERE:
        for got, expected in zip(grads[form], grads["reference"], strict=True):
            assert error(got, expected) <= FLOAT64_ERROR


@pytest.mark.parametrize("eta", [0.02, 0.3, 2.0])
@pytest.mark.parametrize("potential", ["middle of the band", "edge of the band", "random"])
def test_the_past_is_forgotten_within_the_halo(eta: float, potential: str) -> None:
    halo = halo_sites(eta, torch.float64)
    h = torch.randn(1, halo, 1, generator=torch.Generator().manual_seed(1)).double()
    if potential != "random":
        h = torch.full_like(h, 0.0 if potential == "middle of the band" else 2.0)
    energy, eta_H = torch.zeros(1).double(), torch.tensor([eta]).double()
    x = torch.zeros(1, halo, 1, 1).double()
    past = torch.tensor([0.0, 1 / eta, 1.0, 1.0]).double().reshape(1, 4, 1)
    seen = causal_resolvent(h, x, energy, eta_H, past, form="cpu")[:, -1]
    unseen = causal_resolvent(h, x, energy, eta_H, form="cpu")[:, -1]
    assert (seen - unseen).abs().max() <= 4 * torch.finfo(torch.float64).eps * max(1, 1 / eta)


def test_values_are_remembered_twice_as_long_as_the_fraction() -> None:
    # g forgets like a product of g^2, y like a product of g: the halo must be that of y
    halo = halo_sites(0.1, torch.float64)
    h, x = torch.zeros(1, halo, 1).double(), torch.zeros(1, halo, 1, 1).double()
    energy, eta = torch.zeros(1).double(), torch.tensor([0.1]).double()
    past = torch.tensor([0.0, 1.0, 1.0, 0.0]).double().reshape(1, 4, 1)
    seen = causal_resolvent(h, x, energy, eta, past, form="reference")[0, :, :, 0]
    unseen = causal_resolvent(h, x, energy, eta, form="reference")[0, :, :, 0]
    memory_NF = (seen - unseen).abs()
    assert memory_NF[halo // 2, :2].max() <= 11 * torch.finfo(torch.float64).eps
    assert memory_NF[halo // 2, 2:].max() >= 1e-9


def test_chunks_of_time_agree_with_the_form_that_has_none() -> None:
    inputs = draw(1, 20_000, 1, 2, 0.5, torch.float64)
    whole = with_gradients(inputs, "torch")
    assert n_chunks_of_time(*inputs) > 1
    chunked = with_gradients(inputs, "cpu")
    assert max(error(*pair) for pair in zip(chunked, whole, strict=True)) <= 1e-13


def test_a_chain_with_long_memory_is_not_cut_into_chunks_of_time() -> None:
    assert n_chunks_of_time(*draw(1, 20_000, 1, 2, 0.001, torch.float64)) == 1


def test_a_nan_crosses_chunks_of_time_to_the_right() -> None:
    h, x, energy, eta, state = draw(1, 20_000, 1, 2, 0.5, torch.float64)
    x[0, 3, 0, 0] = torch.nan
    assert n_chunks_of_time(h, x, energy, eta, state) > 1
    lost = causal_resolvent(h, x, energy, eta, form="cpu").isnan()
    expected = torch.zeros_like(lost)
    expected[0, 3:, 2:, 0] = True
    assert torch.equal(lost, expected)


def test_a_nan_gradient_crosses_chunks_of_time_to_the_left() -> None:
    inputs = [t.requires_grad_() for t in draw(1, 20_000, 1, 2, 0.5, torch.float64)]
    assert n_chunks_of_time(*inputs) > 1
    features = causal_resolvent(*inputs, form="cpu")
    weights = torch.zeros_like(features)
    weights[0, 19_990, 2, 1] = torch.nan
    dh, dx, _, _, dstate = torch.autograd.grad(features, inputs, weights)
    for grad in (dh[0, :, 1], dx[0, :, 0, 1]):
        assert grad[:19_991].isnan().all() and grad[19_991:].eq(0).all()
    assert dstate[0, :, 1].isnan().all()
    assert dh[0, :, 0].eq(0).all() and dx[0, :, 0, 0].eq(0).all()


def test_writing_past_the_cache_writes_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(2, 40, 2, 16, 0.05, torch.float32)
    expected = with_gradients(inputs, "cpu")
    monkeypatch.setattr(tridiagonal_cpu, "PAST_CACHE_BYTES", 0)
    got = with_gradients(inputs, "cpu")
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_number_of_threads_changes_nothing_while_there_are_rows(dtype: torch.dtype) -> None:
    inputs = draw(8, 300, 1, 20, 0.05, dtype)
    expected = with_gradients(inputs, "cpu")
    torch.set_num_threads(1)
    for _ in range(5):
        assert all(map(torch.equal, with_gradients(inputs, "cpu"), expected))
    torch.set_num_threads(4)
    for _ in range(20):
        assert all(map(torch.equal, with_gradients(inputs, "cpu"), expected))


def test_several_python_threads_at_once_give_the_same_numbers() -> None:
    inputs = draw(8, 300, 1, 20, 0.05, torch.float32)
    expected = with_gradients(inputs, "cpu")
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(with_gradients, inputs, "cpu") for _ in range(16)]
        for job in jobs:
            assert all(torch.equal(*pair) for pair in zip(job.result(), expected, strict=True))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 0, 3), (2, 0, 1, 3), (3,), (3,), None), "N at least 1"),
        (((2, 5, 3), (2, 4, 1, 3), (3,), (3,), None), "x must be"),
        (((2, 5, 3), (2, 5, 1, 3), (2,), (3,), None), "energy must be"),
        (((2, 5, 3), (2, 5, 1, 3), (3,), (1,), None), "eta must be"),
        (((2, 5, 3), (2, 5, 1, 3), (3,), (3,), (2, 6, 3)), "state must be"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    shapes: tuple[tuple[int, ...] | None, ...], message: str
) -> None:
    tensors = [None if shape is None else torch.ones(shape) for shape in shapes]
    with pytest.raises(ConfigError, match=message):
        causal_resolvent(*tensors)  # type: ignore[arg-type]


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(ConfigError, match="got 'fast'"):
        causal_resolvent(*draw(1, 2, 1, 3, 0.5, torch.float32), form="fast")


def test_importing_the_module_leaves_numba_alone() -> None:
    code = "import sys, bkray.ops.tridiagonal; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
