"""How the BK mixer starts, and that it reads the resolvent. Letters as in ``bk``."""

import math

import torch
from torch.nn.functional import silu, softplus

from bkray.nn.bk import BAND, POTENTIAL_GAIN, V_MAX, BKMixer, bounded
from bkray.ops.tridiagonal import causal_resolvent

WIDTH, HEADS, VALUES = 16, 8, 3


def mixer(seed: int = 0, n_heads: int = HEADS) -> BKMixer:
    torch.manual_seed(seed)
    return BKMixer(WIDTH, n_heads, VALUES)


def test_energies_start_spread_over_the_band_in_shuffled_order() -> None:
    spread = torch.linspace(*BAND, HEADS)
    first, other = mixer().energy.detach(), mixer(seed=1).energy.detach()
    assert torch.equal(first.sort().values, spread)
    assert not torch.equal(first, spread)
    assert not torch.equal(first, other)


def test_eta_starts_spread_from_long_to_short_memory() -> None:
    eta = softplus(mixer().raw_eta.detach())
    assert torch.allclose(eta, softplus(torch.linspace(-4.0, 0.55, HEADS)))


def test_one_head_starts_inside_the_band() -> None:
    one = mixer(n_heads=1)
    assert BAND[0] < one.energy.item() < BAND[1]
    assert one.raw_eta.shape == (1,)


def test_the_potential_starts_small() -> None:
    usual = 1 / math.sqrt(WIDTH)  # the largest weight that a linear layer starts with
    assert mixer().potential.weight.abs().max() <= POTENTIAL_GAIN * usual


@torch.no_grad()
def test_the_potential_stays_bounded_however_loud_the_token() -> None:
    """The resolvent sees h between -2 - V_MAX and -2 + V_MAX, so its features stay finite."""
    a_mixer = mixer().double()
    hidden = 1e8 * torch.randn(1, 12, WIDTH, dtype=torch.float64)
    h = V_MAX * torch.tanh(a_mixer.potential(hidden) / V_MAX) - 2
    assert (h + 2).abs().max() <= V_MAX
    assert a_mixer(hidden, torch.arange(12)[None]).isfinite().all()


@torch.no_grad()
def test_bf16_loses_nothing_of_the_potential_but_what_it_came_with() -> None:
    u = torch.linspace(-8, 8, 99).bfloat16()
    exact = V_MAX * torch.tanh(u.double() / V_MAX)
    assert (bounded(u) - exact).abs().max() <= 1e-6
    assert bounded(u.double()).dtype == torch.float64


def test_the_mixer_is_the_resolvent_normed_gated_and_projected() -> None:
    bk = mixer().double()
    hidden = torch.randn(2, 10, WIDTH, dtype=torch.float64)
    h = V_MAX * torch.tanh(bk.potential(hidden) / V_MAX) - 2
    eta = softplus(bk.raw_eta)
    values = bk.values(hidden).view(2, 10, VALUES, HEADS) * eta.sqrt()
    features = causal_resolvent(h, values, bk.energy, eta, form="reference").reshape(2, 10, -1)
    rms = features.square().mean(-1, keepdim=True).sqrt()
    gated = bk.norm.weight * features / rms * silu(bk.gate(hidden))
    expected = gated @ bk.out.weight.T
    assert (bk(hidden, torch.arange(10).expand(2, 10)) - expected).abs().max() <= 1e-10


def test_without_values_the_diagonal_is_all_there_is() -> None:
    torch.manual_seed(0)
    plain = BKMixer(WIDTH, 4, 0).double()
    assert plain.values is None
    assert plain.norm.normalized_shape == (2 * 4,)
    hidden = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    _, state = plain.stream(hidden, torch.zeros(2, 9, dtype=torch.long))
    assert isinstance(state, torch.Tensor)
    assert state.shape == (2, 2, 4)
    plain.in_float64 = True
    assert plain(hidden, torch.zeros(2, 9, dtype=torch.long)).shape == hidden.shape


def test_energies_start_over_the_band_or_at_its_edge_and_all_else_alike() -> None:
    made = []
    for spread in (True, False):
        torch.manual_seed(0)
        made.append(BKMixer(WIDTH, 4, 2, spread=spread))
    over, edge = (dict(one.named_parameters()) for one in made)
    assert sorted(over.pop("energy").tolist()) == torch.linspace(*BAND, 4).tolist()
    assert edge.pop("energy").tolist() == [0.0] * 4
    assert all(torch.equal(over[name], edge[name]) for name in over)
