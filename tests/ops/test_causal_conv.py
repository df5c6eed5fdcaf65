"""The causal convolution against its plain form."""

import pytest
import torch
from torch import Tensor

from bkray.ops.causal_conv import causal_conv, reference

SHAPES = [(2, 37, 24, 4), (3, 1, 16, 4), (1, 100, 5, 1), (2, 65, 40, 2)]  # B, N, D, K


def draw(B: int, N: int, D: int, K: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(N)
    shapes = ((B, N + K - 1, D), (K, D), (D,))
    return [torch.randn(*s, generator=generator).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_and_gradients_are_those_of_the_plain_form(
    shape: tuple[int, int, int, int], n_threads: int
) -> None:
    torch.set_num_threads(n_threads)
    for dtype, allowed in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
        expected = reference(*draw(*shape))
        weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
        inputs, exact = draw(*shape, dtype), draw(*shape)
        said = causal_conv(*inputs)
        assert said.dtype == dtype
        assert (said - expected).abs().max() <= allowed * expected.abs().max()
        grads = torch.autograd.grad(said, inputs, weights.to(dtype))
        of_exact = torch.autograd.grad(reference(*exact), exact, weights.double())
        for got, wanted in zip(grads, of_exact, strict=True):
            assert got.shape == wanted.shape
            assert (got - wanted).abs().max() <= allowed * wanted.abs().max()


def test_the_last_tap_is_on_the_site_itself() -> None:
    x, weight, bias = draw(1, 9, 3, 4)
    expected = bias + sum(weight[k] * x[0, 5 + k] for k in range(4))
    assert (causal_conv(x, weight, bias)[0, 5] - expected).abs().max() <= 1e-14


def test_more_numbers_than_one_thread_takes_are_shared() -> None:
    inputs = draw(1, 9000, 56, 4)
    expected = reference(*inputs)
    torch.set_num_threads(3)
    assert (causal_conv(*inputs) - expected).abs().max() <= 1e-13


@torch.no_grad()
def test_a_nan_is_heard_as_far_as_the_taps_reach_and_in_its_channel_alone() -> None:
    x, weight, bias = draw(2, 20, 20, 4)
    x[0, 10, 17] = torch.nan
    expected = torch.zeros(2, 20, 20, dtype=torch.bool)
    expected[0, 7:11, 17] = True
    assert torch.equal(causal_conv(x, weight, bias).isnan(), expected)
