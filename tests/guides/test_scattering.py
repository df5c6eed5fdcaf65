"""The guides' scattering parts against dense forms. Letters as there."""

import math

import pytest
import torch

from bkray.errors import ConfigError
from bkray.guides import BirmanSchwingerCore, ScatteringRouter, SemiseparableMatrix
from bkray.ops.birman_schwinger import dense_operator

N = 30


def some(*shape: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(*shape, dtype=torch.float64, generator=draw)


def test_the_core_is_the_resolvents_last_entry_and_tells_the_operators_norms() -> None:
    v = some(2, N)
    features, monitor = BirmanSchwingerCore(N, epsilon=0.5)(v)
    for row in range(2):
        for t in (0, 7, N - 1):
            side = torch.ones(t, dtype=torch.complex128)
            chain = torch.diag(v[row, : t + 1] - 2 + 2 - 0.5j)
            chain = chain + torch.diag(side, 1) + torch.diag(side, -1)
            expected = torch.linalg.inv(chain)[t, t]
            assert abs(torch.view_as_complex(features[row, t]) - expected) <= 1e-12
    z = torch.tensor([-2.0]), torch.tensor([0.5])
    operator = dense_operator(v[..., None], *z)
    values = torch.linalg.svdvals(operator)
    assert monitor["schatten_s1"] == pytest.approx(float(values.sum(-1).mean()))
    assert monitor["schatten_s2"] == pytest.approx(float(values.square().sum(-1).sqrt().mean()))
    condition = torch.linalg.cond(torch.eye(N) + operator).max()
    assert monitor["condition_number"] == pytest.approx(float(condition), rel=5e-3)


def test_the_core_is_causal_and_refuses_what_it_cannot_do() -> None:
    core, v = BirmanSchwingerCore(N), some(1, N)
    other = v.clone()
    other[:, 9:] += 1
    said, before = core(other)[0], core(v)[0]
    assert torch.equal(said[:, :9], before[:, :9])
    assert (said - before)[:, 9].abs().max() > 1e-6
    with pytest.raises(ConfigError, match=r"n_seq"):
        core(some(1, N + 1))
    with pytest.raises(ConfigError, match=r"epsilon must be above 0, got 0"):
        BirmanSchwingerCore(N, epsilon=0)


def test_the_router_reads_phases_in_either_form() -> None:
    phase = math.pi * torch.rand(4, 100, dtype=torch.float64).sqrt()
    g = torch.polar(torch.ones_like(phase), phase)
    router = ScatteringRouter(4)
    expected = (phase / (math.pi / 4)).long()
    assert (router(g) == expected).double().mean() > 0.99, "bins of equal width at first"
    assert torch.equal(router(g), router(torch.view_as_real(g)))
    router.calibrate(g)
    assert (router(g).flatten().bincount() - 100).abs().max() <= 1


@pytest.mark.parametrize("z", [0.0, -1.5 + 0.2j])
def test_the_matrix_multiplies_and_solves_as_its_dense_form(z: complex) -> None:
    matrix = SemiseparableMatrix(N, rank=3)
    matrix.diagonal, matrix.u, matrix.v = some(N) - 2, some(N, 3), some(N, 3).flip(0)
    side = torch.diag(torch.ones(N - 1, dtype=torch.float64), 1)
    dense = torch.diag(matrix.diagonal) + side + side.T + matrix.u @ matrix.v.T
    b = some(N)
    assert (matrix.matvec(b) - dense @ b).abs().max() <= 1e-12
    with pytest.raises(ConfigError, match="call factorize first"):
        matrix.solve(b)
    matrix.factorize(z)
    shifted = dense - z * torch.eye(N, dtype=torch.float64)
    for right in (b, some(N, 2)):
        expected = torch.linalg.solve(shifted, right.to(shifted.dtype))
        assert (matrix.solve(right) - expected).abs().max() <= 1e-8 * expected.abs().max()
    assert SemiseparableMatrix(N).u.shape == (N, 16)
