"""The Triton form of the causal resolvent as it ships: no constant of it is patched here."""

import pytest
import torch
from resolvents import draw, error, with_gradients

from bkray.ops.tridiagonal import causal_resolvent

tridiagonal_triton = pytest.importorskip(
    "bkray.ops.tridiagonal_triton", reason="needs triton, of the dev extra"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = (1, 200, 2, 1, 0.05)
"""Few lanes: on any device that is three chunks of 64 sites and a rest of 8."""


def test_few_lanes_are_cut_into_several_chunks() -> None:
    plan = tridiagonal_triton._plan(torch.zeros(1, 200, 1, device=DEVICE), 2)
    assert plan.n_chunks == 4 and plan.n_sites == 64


def test_features_and_gradients_are_those_of_float64_autograd() -> None:
    features, *grads = with_gradients(draw(*SHAPE, torch.float64), "reference")
    given = [t.to(DEVICE) for t in draw(*SHAPE, torch.float32)]
    got, *got_grads = with_gradients(given, "triton")
    assert error(got, features) <= 1e-5
    assert max(error(*pair) for pair in zip(got_grads, grads, strict=True)) <= 1e-4


def test_potentials_of_1e18_do_not_overflow_the_maps_of_chunks() -> None:
    h, x, energy, eta, state = draw(1, 136, 1, 2, 0.1, torch.float64)
    h = h * 1e18  # the limit is about 1e19
    expected = causal_resolvent(h, x, energy, eta, state, form="reference")
    got = causal_resolvent(*(t.to(DEVICE) for t in (h, x, energy, eta, state)), form="triton")
    assert got.isfinite().all()
    assert error(got, expected) <= 1e-12


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has more than one processor")
@pytest.mark.parametrize("n_lanes", [1, 64, 65, 128, 129, 192, 256, 257, 1000])
def test_chunks_are_no_more_than_one_wave_of_programs(n_lanes: int) -> None:
    plan = tridiagonal_triton._plan(torch.zeros(1, 100_000, 1), n_lanes)
    blocks, n_chunks = plan.programs(plan.n_chunks)
    assert n_chunks == max(1, 4 // blocks)
