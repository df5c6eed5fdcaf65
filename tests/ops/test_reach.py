"""Reach of weights: against the dense inverse, and where it is known."""

import math

import pytest
import torch

from bkray.ops.reach import of_gates, of_shares
from bkray.ops.tridiagonal import causal_resolvent


def test_gates_reach_as_far_as_the_dense_inverse_says() -> None:
    draw = torch.Generator().manual_seed(0)
    N, z = 12, complex(-1.5, 0.3)
    h_N = torch.rand(N, generator=draw, dtype=torch.float64) * 2 - 3
    none = h_N.new_zeros(1, N, 0, 1)
    energy, eta = h_N.new_tensor([z.real]), h_N.new_tensor([z.imag])
    g = causal_resolvent(h_N.view(1, N, 1), none, energy, eta, form="reference")
    seen = of_gates(torch.complex(g[:, :, 0], g[:, :, 1]))
    for t in range(N):
        chain = torch.diag(h_N[: t + 1]).to(torch.complex128)
        chain += torch.diag(torch.ones(t, dtype=torch.complex128), 1)
        chain += torch.diag(torch.ones(t, dtype=torch.complex128), -1)
        weight_s = torch.linalg.inv(chain - z * torch.eye(t + 1).to(chain))[t].abs()
        share_s = weight_s / weight_s.sum()
        distance = (share_s * torch.arange(t, -1, -1)).sum()
        entropy = -(share_s * share_s.log()).sum()
        assert float(seen.tokens[0, t, 0]) == pytest.approx(float(distance), abs=1e-10)
        assert float(seen.entropy_nats[0, t, 0]) == pytest.approx(float(entropy), abs=1e-10)


def test_equal_shares_reach_half_of_the_way_and_one_reaches_its_site() -> None:
    share = torch.zeros(1, 1, 2, 8, dtype=torch.float64)
    share[0, 0, 0, :5] = 0.2
    share[0, 0, 1, 1] = 1.0
    seen = of_shares(share, torch.tensor([4, 7]))
    assert seen.tokens.flatten().tolist() == pytest.approx([2.0, 6.0])
    assert seen.entropy_nats.flatten().tolist() == pytest.approx([math.log(5), 0.0])


def test_a_nan_in_a_gate_stays_one_from_there_on() -> None:
    gate = torch.full((1, 4, 1), 0.5)
    gate[0, 2, 0] = math.nan
    told = of_gates(gate).tokens.flatten().isnan().tolist()
    assert told == [False, False, True, True]
