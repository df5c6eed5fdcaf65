"""What every mixer must do. Letters: B batch, N sites, D width.

A new mixer takes one line in ``MIXERS`` of ``tiny.py``.
"""

from typing import Any

import pytest
import torch
from tiny import MIXERS, tiny_config
from torch import Tensor

from bkray.nn.build import mixer as build_mixer
from bkray.nn.mixer import Mixer

WIDTH, SITES = 16, 24

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in MIXERS},
    "attention without positions": ("attention", {"position": "none"}),
    "bk with one head": ("bk", {"model.n_heads": 1}),
    "attention with one head": ("attention", {"model.n_heads": 1}),
    "attention over threes": ("attention", {"model.mixer_scale": 3}),
    "bk with a low rank": ("bk", {"model.semiseparable_rank": 3}),
    "bk over pairs": ("bk", {"model.mixer_scale": 2}),
    "mamba with one state": ("mamba", {"model.d_state": 1, "model.expand": 1}),
    "linear recurrence over pairs": ("linear_recurrence", {"model.mixer_scale": 2}),
}


def of_kind(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    name, knobs = KINDS[kind]
    return build_mixer(tiny_config(name, **knobs).model).to(dtype)


@pytest.fixture(params=KINDS)
def mixer(request: pytest.FixtureRequest) -> Any:
    return of_kind(request.param)


def scale_of(mixer: Any) -> int:
    """Return how many sites on something is heard at the latest, at a scale other than 1."""
    return getattr(mixer, "scale", 1)


def hidden(n_rows: int = 2, n_sites: int = SITES, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n_rows, n_sites, WIDTH, dtype=dtype, generator=draw)


def counted(hidden_BND: Tensor) -> Tensor:
    return torch.arange(hidden_BND.shape[1]).expand(hidden_BND.shape[:2])


def test_is_a_mixer_and_keeps_the_shape(mixer: Any) -> None:
    given = hidden()
    assert isinstance(mixer, Mixer)
    assert mixer(given, counted(given)).shape == given.shape


@torch.no_grad()
def test_the_future_is_hidden_if_declared_causal(mixer: Any) -> None:
    assert mixer.causal
    given = hidden()
    before = mixer(given, counted(given))
    for t in range(SITES - 1):
        other = given.clone()
        other[:, t + 1 :] = other[:, t + 1 :].flip(-1) + 0.5
        after = mixer(other, counted(other))
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        heard = (after - before)[:, t + 1 :][:, : scale_of(mixer)]
        assert heard.abs().max() > 1e-6


@torch.no_grad()
def test_a_site_hears_the_first_one(mixer: Any) -> None:
    given = hidden()
    other = given.clone()
    other[:, 0] = -other[:, 0]
    moved = (mixer(other, counted(other)) - mixer(given, counted(given))).abs().amax((0, 2))
    assert (moved[scale_of(mixer) - 1 :] > 1e-9).all()


@torch.no_grad()
def test_a_prefix_alone_says_what_it_says_in_the_whole(mixer: Any) -> None:
    given = hidden()
    whole = mixer(given, counted(given))
    for n_sites in (1, 2, 5, SITES - 1):
        prefix = given[:, :n_sites]
        assert (mixer(prefix, counted(prefix)) - whole[:, :n_sites]).abs().max() <= 1e-12


@torch.no_grad()
def test_a_row_does_not_see_its_batch(mixer: Any) -> None:
    given = hidden(n_rows=3)
    whole = mixer(given, counted(given))
    for row in range(3):
        alone = given[row : row + 1]
        assert (mixer(alone, counted(alone)) - whole[row : row + 1]).abs().max() <= 1e-12


@torch.no_grad()
def test_a_nan_comes_out_where_it_went_in_and_in_no_other_row(mixer: Any) -> None:
    given = hidden()
    given[0, 7, 3] = torch.nan
    said = mixer(given, counted(given))
    assert said[0, 7:][: scale_of(mixer)].isnan().any()
    assert said[1].isfinite().all()


def test_every_parameter_and_every_site_gets_a_gradient(mixer: Any) -> None:
    given = hidden().requires_grad_()
    torch.autograd.backward(mixer(given, counted(given)).square().sum())
    assert given.grad is not None
    assert (given.grad.abs().amax(-1) > 0).all()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_pass_a_finite_difference_check(mixer: Any) -> None:
    given = hidden(n_rows=1, n_sites=4).requires_grad_()
    parameters = list(mixer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: mixer(x, counted(x)), (given, *parameters))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_float32_says_what_float64_says(kind: str) -> None:
    double, single = of_kind(kind), of_kind(kind, torch.float32)
    single.load_state_dict({name: value.float() for name, value in double.state_dict().items()})
    given = hidden().float()
    said = single(given, counted(given))
    assert said.dtype == torch.float32
    expected = double(given.double(), counted(given))
    assert (said - expected).abs().max() <= 2e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_says_about_the_same(kind: str) -> None:
    single, given = of_kind(kind, torch.float32), hidden(dtype=torch.float32)
    expected = single(given, counted(given))
    with torch.autocast("cpu", torch.bfloat16):
        said = single(given, counted(given)).float()
    assert (said - expected).abs().max() <= 0.03 * expected.abs().max()


@torch.no_grad()
def test_a_long_memory_survives_bf16_autocast() -> None:
    """Gates of 0.9975 over 400 equal sites: a scan in bf16 would miss by 37%."""
    single = of_kind("linear_recurrence", torch.float32)
    torch.nn.init.constant_(single.forget.bias, 6.0)
    given = hidden(n_rows=1, n_sites=1, dtype=torch.float32).expand(1, 400, WIDTH)
    expected = single(given, counted(given))[:, -1]
    with torch.autocast("cpu", torch.bfloat16):
        said = single(given, counted(given)).float()[:, -1]
    assert (said - expected).abs().max() <= 0.02 * expected.abs().max()


@torch.no_grad()
def test_rope_sees_distances_alone() -> None:
    rope, given = of_kind("attention"), hidden()
    said = rope(given, counted(given))
    assert (rope(given, counted(given) + 100) - said).abs().max() <= 1e-11
    gap = counted(given) + 5 * (counted(given) >= 10)
    assert (rope(given, gap) - said)[:, :10].abs().max() <= 1e-12
    assert (rope(given, gap) - said)[:, 10:].abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("attention")])
def test_recurrences_take_order_for_position(kind: str) -> None:
    mixer, given = of_kind(kind), hidden()
    assert torch.equal(mixer(given, counted(given) * 3 + 7), mixer(given, counted(given)))


@torch.no_grad()
def test_attention_without_rope_ignores_the_order_of_what_it_has_seen() -> None:
    mixer, given = of_kind("attention without positions"), hidden()
    shuffled = torch.cat([given[:, :-1].flip(1), given[:, -1:]], dim=1)
    last = mixer(given, counted(given))[:, -1]
    assert (mixer(shuffled, counted(given))[:, -1] - last).abs().max() <= 1e-12
