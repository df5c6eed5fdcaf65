"""The Triton form of the causal resolvent: on a GPU where there is one, else interpreted."""

import random

import pytest
import torch
from resolvents import Shape, draw, error, with_gradients
from torch import Tensor

from bkray.errors import ConfigError
from bkray.ops import tridiagonal
from bkray.ops.forms import form_for
from bkray.ops.tridiagonal import causal_resolvent, two_sided_resolvent

tridiagonal_triton = pytest.importorskip(
    "bkray.ops.tridiagonal_triton", reason="needs triton, of the dev extra"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FEATURE_ERROR, GRADIENT_ERROR = 1e-5, 1e-4
"""In float32, times ``max(1, 0.02 / eta)``."""
FLOAT64_ERROR = 1e-11
CHUNK = 8


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short sequences too, and into as many chunks as there can be."""
    for name, value in (("SHORTEST_CHUNK", CHUNK), ("AHEAD_SITES", 4), ("BACK_AHEAD_SITES", 2)):
        monkeypatch.setattr(tridiagonal_triton, name, value)
    monkeypatch.setattr(tridiagonal_triton, "AHEAD_CHUNKS", 2)
    monkeypatch.setattr(tridiagonal_triton, "LANES_PER_PROCESSOR", 1 << 20)


def random_shapes() -> list[Shape]:
    drawn = random.Random(3)
    shapes: list[Shape] = [(1, 1, 1, 3, 0.02), (2, 1, 0, 2, 1e-3), (2, 37, 0, 3, 1e-3)]
    while len(shapes) < 22:
        B, K, H = drawn.randint(1, 3), drawn.randint(0, 3), drawn.randint(1, 7)
        shapes.append((B, drawn.randint(9, 61), K, H, 10 ** drawn.uniform(-3, 0.3)))
    return shapes


def n_chunks(h_BNH: Tensor, n_lanes: int) -> int:
    return int(tridiagonal_triton._plan(h_BNH, n_lanes).n_chunks)


def there(inputs: list[Tensor]) -> list[Tensor]:
    return [t.to(DEVICE) for t in inputs]


def test_random_shapes_are_cut_into_several_chunks_and_a_rest() -> None:
    sites = [shape[1] for shape in random_shapes()]
    assert sum(n > 2 * CHUNK and n % CHUNK for n in sites) >= 10
    assert n_chunks(torch.zeros(1, 61, 2, device=DEVICE), 2) > 4


@pytest.mark.parametrize("shape", random_shapes())
def test_features_and_gradients_are_those_of_float64_autograd(shape: Shape) -> None:
    features, *grads = with_gradients(draw(*shape, torch.float64), "reference")
    got, *got_grads = with_gradients(there(draw(*shape, torch.float32)), "triton")
    scale = max(1, 0.02 / shape[-1])
    assert got.dtype == torch.float32
    assert error(got, features) <= FEATURE_ERROR * scale
    errors = [error(*pair) for pair in zip(got_grads, grads, strict=True)]
    assert max(errors) <= GRADIENT_ERROR * scale


@pytest.mark.parametrize("eta", [1e-3, 0.3])
def test_float64_stays_float64(eta: float) -> None:
    shape = (2, 45, 2, 3, eta)
    expected = with_gradients(draw(*shape, torch.float64), "reference")
    got = with_gradients(there(draw(*shape, torch.float64)), "triton")
    errors = [error(*pair) for pair in zip(got, expected, strict=True)]
    assert max(errors) <= FLOAT64_ERROR / min(1, eta)


def test_the_number_of_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = there(draw(2, 50, 1, 3, 0.02, torch.float64))
    cut = with_gradients(inputs, "triton")
    monkeypatch.setattr(tridiagonal_triton, "SHORTEST_CHUNK", 64)
    assert n_chunks(inputs[0], 6) == 1
    whole = with_gradients(inputs, "triton")
    assert max(error(*pair) for pair in zip(cut, whole, strict=True)) <= 1e-12


def test_pieces_of_a_sequence_are_the_sequence() -> None:
    h, x, energy, eta, state = there(draw(2, 37, 2, 3, 0.02, torch.float64))
    whole = causal_resolvent(h, x, energy, eta, state, form="triton")
    pieces = []
    for h_piece, x_piece in zip(h.split((5, 1, 31), 1), x.split((5, 1, 31), 1), strict=True):
        pieces.append(causal_resolvent(h_piece, x_piece, energy, eta, state, form="triton"))
        state = pieces[-1][:, -1]
    assert error(torch.cat(pieces, 1), whole) <= 1e-12


def test_a_site_changes_nothing_before_itself() -> None:
    h, x, energy, eta, state = there(draw(1, 40, 1, 3, 0.02, torch.float64))
    base = causal_resolvent(h, x, energy, eta, state, form="triton")
    for site in (0, CHUNK - 1, CHUNK, 22):
        h_moved, x_moved = h.clone(), x.clone()
        h_moved[:, site] += 1
        x_moved[:, site] += 1
        moved = causal_resolvent(h_moved, x_moved, energy, eta, state, form="triton")
        assert torch.equal(moved[:, :site], base[:, :site])
        assert (moved[:, site] != base[:, site]).all()


def test_a_nan_comes_out_from_its_site_on_and_in_its_gradients() -> None:
    h, x, energy, eta, _ = draw(1, 40, 2, 3, 0.1, torch.float32)
    h[0, 5, 0] = torch.nan  # poisons g and y of head 0
    x[0, 12, 0, 1] = torch.nan  # poisons one y of head 1, not its g
    h, x, energy, eta = there([h.requires_grad_(), x, energy, eta])
    features = causal_resolvent(h, x, energy, eta, form="triton")
    expected = torch.zeros(40, 6, 3, dtype=torch.bool)
    expected[5:, :, 0] = expected[12:, [2, 4], 1] = True
    assert torch.equal(features[0].isnan().cpu(), expected)
    (grad,) = torch.autograd.grad(features, h, torch.ones_like(features))
    assert torch.equal(grad[0].isnan().all(0).cpu(), torch.tensor([True, True, False]))


def test_a_nan_gradient_goes_left_through_all_chunks() -> None:
    inputs = [t.requires_grad_() for t in there(draw(1, 40, 1, 2, 0.5, torch.float64))]
    features = causal_resolvent(*inputs, form="triton")
    weights = torch.zeros_like(features)
    weights[0, 30, 2, 1] = torch.nan
    dh, dx, _, _, dstate = torch.autograd.grad(features, inputs, weights)
    for grad in (dh[0, :, 1], dx[0, :, 0, 1]):
        assert grad[:31].isnan().all() and grad[31:].eq(0).all()
    assert dstate[0, :, 1].isnan().all()
    assert dh[0, :, 0].eq(0).all() and dx[0, :, 0, 0].eq(0).all()


def test_bf16_is_read_as_it_is_and_computed_in_float32() -> None:
    h, x, energy, eta, _ = there(draw(1, 21, 1, 3, 0.05, torch.float32))
    low = [h.bfloat16().requires_grad_(), x.bfloat16().requires_grad_()]
    high = [t.detach().float().requires_grad_() for t in low]
    got = causal_resolvent(*low, energy, eta, form="triton")
    expected = causal_resolvent(*high, energy, eta, form="triton")
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
    grads = torch.autograd.grad(got.sum(), low)
    precise = torch.autograd.grad(expected.sum(), high)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(grads, precise, strict=True))


def test_strided_and_expanded_tensors_are_read_as_they_are() -> None:
    h, x, energy, eta, _ = there(draw(2, 21, 2, 3, 0.05, torch.float64))
    zeros = torch.zeros(2, 6, 3, device=DEVICE).double()
    expected = with_gradients([h, x, energy, eta, zeros], "triton")
    joint = torch.cat((h.unsqueeze(2), x), 2)
    swapped = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    empty = zeros[:1, :, :1].expand(2, 6, 3)
    got = with_gradients([joint[:, :, 0], swapped, energy, eta, empty], "triton")
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    leaf = h.clone().requires_grad_()
    causal_resolvent(leaf, x, energy, eta, form="triton").sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_the_two_sided_resolvent_and_its_gradients_are_those_of_the_reference() -> None:
    inputs = draw(1, 13, 2, 2, 0.02, torch.float64)[:4]
    found = {}
    for form, given in (("reference", inputs), ("triton", there(inputs))):
        leaves = [t.requires_grad_() for t in given]
        features = two_sided_resolvent(*leaves, form=form)
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
        found[form] = [
            features.detach(),
            *torch.autograd.grad(features, leaves, weights.to(features)),
        ]
    for got, expected in zip(found["triton"], found["reference"], strict=True):
        assert error(got, expected) <= 1e-10


def test_gpus_take_triton_and_other_devices_do_not() -> None:
    assert form_for(torch.device("cuda")) == "triton"
    assert form_for(torch.device("cpu")) == "cpu"
    assert form_for(torch.device("mps")) == "torch"
    assert "triton" in tridiagonal.FORMS


@pytest.mark.skipif(DEVICE == "cuda", reason="needs a machine without a GPU")
def test_the_cpu_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tridiagonal_triton.triton.knobs.runtime, "interpret", False)
    with pytest.raises(ConfigError, match="form=triton needs a GPU"):
        causal_resolvent(*draw(1, 3, 1, 2, 0.3, torch.float32), form="triton")
