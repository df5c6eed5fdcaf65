"""The Triton form of the selective scan: on a GPU where there is one, else interpreted."""

import pytest
import torch
from scans import Shape, draw, error, with_gradients
from torch import Tensor

from bkray.ops.selective_scan import selective_scan

selective_scan_triton = pytest.importorskip(
    "bkray.ops.selective_scan_triton", reason="needs triton, of the dev extra"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOAT64_ERROR, FLOAT32_ERROR = 1e-10, 4e-6
"""Those of the other forms."""
SHAPES: list[Shape] = [  # B, N, D, S
    (2, 19, 24, 5),
    (1, 1, 3, 1),
    (1, 23, 40, 2),
    (2, 8, 33, 4),
]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 sites, so that short sequences have several and a rest."""
    for name, value in (("CHUNK_SITES", 8), ("AHEAD_SITES", 4), ("BACK_AHEAD_SITES", 2)):
        monkeypatch.setattr(selective_scan_triton, name, value)


def there(inputs: list[Tensor]) -> list[Tensor]:
    return [t.to(DEVICE) for t in inputs]


@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_and_gradients_are_those_of_float64_autograd(shape: Shape) -> None:
    expected = with_gradients(draw(*shape), "reference")
    for dtype, allowed in ((torch.float64, FLOAT64_ERROR), (torch.float32, FLOAT32_ERROR)):
        got = with_gradients(there(draw(*shape, dtype)), "triton")
        assert all(t.dtype == dtype for t in got)
        assert max(error(*pair) for pair in zip(got, expected, strict=True)) <= allowed


def test_steps_that_forget_everything_are_exact() -> None:
    expected = with_gradients(draw(1, 20, 5, 3, stretch=1e3), "reference")
    got = with_gradients(there(draw(1, 20, 5, 3, torch.float32, 1e3)), "triton")
    assert all(t.isfinite().all() for t in got)
    assert max(error(*pair) for pair in zip(got, expected, strict=True)) <= FLOAT32_ERROR


def test_a_sequence_in_pieces_is_the_sequence_in_one() -> None:
    x, dt, rate, into, out, skip, state = there(draw(2, 21, 7, 3))
    whole, last = selective_scan(x, dt, rate, into, out, skip, state, form="triton")
    said = []
    for piece in zip(*(t.split((5, 1, 15), 1) for t in (x, dt, into, out)), strict=True):
        x_piece, dt_piece, *matrices = piece
        y, state = selective_scan(x_piece, dt_piece, rate, *matrices, skip, state, form="triton")
        said.append(y)
    assert error(torch.cat(said, 1), whole) <= 1e-13
    assert error(state, last) <= 1e-13


def test_a_nan_comes_out_from_its_site_on_and_in_its_gradients() -> None:
    inputs = draw(2, 30, 6, 3, torch.float32)
    inputs[0][0, 12, 4] = torch.nan
    leaves = [t.requires_grad_() for t in there(inputs)]
    y, last = selective_scan(*leaves, form="triton")
    expected = torch.zeros(2, 30, 6, dtype=torch.bool)
    expected[0, 12:, 4] = True
    assert torch.equal(y.isnan().cpu(), expected)
    assert torch.equal(last.isnan().cpu(), expected[:, -1:].expand_as(last))
    dx, ddt, drate, *_ = torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert ddt[0, 12:, 4].isnan().any() and drate[:, 4].isnan().all()
    assert dx[1].isfinite().all() and drate[:, :4].isfinite().all()


def test_strided_and_expanded_tensors_are_read_as_they_are() -> None:
    x, dt, rate, into, out, skip, state = there(draw(2, 11, 16, 3))
    rate = rate[:, :1].expand(3, 16)
    given = [x, dt, rate.clone(), into, out, skip, torch.zeros_like(state)]
    expected = with_gradients(given, "triton")
    joint = torch.cat([into, out], -1)
    swapped = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    empty = torch.zeros_like(state)[:1, :1, :1].expand(2, 3, 16)
    got = with_gradients(
        [swapped, dt, rate, joint[..., :3], joint[..., 3:], skip, empty], "triton"
    )
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
