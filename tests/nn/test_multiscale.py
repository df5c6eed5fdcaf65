"""Layers and mixers over groups of sites. Letters as in ``multiscale``."""

from typing import Any

import pytest
import torch
from tiny import MIXERS, STOP, random_tokens, steer, tiny_config, tiny_model, uneven_rows
from torch import Tensor

from bkray.errors import ConfigError
from bkray.nn.act import ActDepth
from bkray.nn.build import full_rate_mixer
from bkray.nn.build import mixer as build_mixer
from bkray.nn.lm import LanguageModel, sites_of
from bkray.nn.multiscale import MultiscaleDepth, last_members, means, read_back

SITES = 16
PAIRS = {"multiscale": True, "n_layers": 4}


def hidden(n_sites: int = SITES, n_rows: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(n_rows, n_sites, 16, dtype=torch.float64, generator=draw)


def plain_waist(model: LanguageModel, row_ND: Tensor, position_N: Tensor) -> Tensor:
    """Return one row's states behind the last block from those behind the first, pair by pair."""
    _, *middle, last = model.blocks
    n_pairs = len(row_ND) // 2
    if n_pairs:
        pairs = torch.stack([(row_ND[2 * j] + row_ND[2 * j + 1]) / 2 for j in range(n_pairs)])
        at = position_N[1::2][:n_pairs]
        mixed = pairs[None]
        for block in middle:
            mixed, _ = block(mixed, at[None], None)
        row_ND = row_ND.clone()
        for t in range(1, len(row_ND)):
            j = (t + 1) // 2 - 1  # the newest pair of which no member is behind t
            row_ND[t] += mixed[0, j] - pairs[j]
    return last(row_ND[None], position_N[None], None)[0][0]


@pytest.mark.parametrize("n_sites", [1, 2, 3, 7, 8, 12])
@pytest.mark.parametrize("scale", [1, 2, 3, 5])
def test_a_site_reads_the_newest_group_whose_members_it_has_seen(scale: int, n_sites: int) -> None:
    groups = means(hidden(n_sites), scale)
    back = read_back(groups, n_sites, scale)
    assert back.shape == (2, n_sites, 16)
    for t in range(n_sites):
        whole = (t + 1) // scale  # groups that end at t or before
        if whole == 0:
            assert not back[:, t].any()
        else:
            members = hidden(n_sites)[:, (whole - 1) * scale : whole * scale]
            assert (back[:, t] - members.mean(1)).abs().max() <= 1e-15
    n_groups = max(n_sites // scale, 1)
    assert groups.shape[1] == n_groups
    last = last_members(torch.arange(n_sites).expand(2, n_sites), scale)
    expected = [scale * (j + 1) - 1 for j in range(n_groups)] if n_sites >= scale else [0]
    assert last.tolist() == [expected, expected]


@torch.no_grad()
@pytest.mark.parametrize("n_sites", [1, 2, 5, SITES])
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_hourglass_is_what_the_plain_reference_does(mixer: str, n_sites: int) -> None:
    model, tokens = tiny_model(mixer, **PAIRS), random_tokens(3, n_sites)
    embedded = model.embed(tokens)
    said = model(tokens)
    for row in range(3):
        position = torch.arange(n_sites)
        state, _ = model.blocks[0](embedded[row : row + 1], position[None], None)
        state = plain_waist(model, state[0], position)
        assert (model.read(state) - said.logits_BNV[row]).abs().max() <= 1e-11
    assert said.layers_BN.tolist() == [[2] + [4] * (n_sites - 1)] * 3


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_pairs_are_pairs_of_those_who_stayed(mixer: str) -> None:
    """Tokens that left behind the first block are in no pair of the middle."""
    model = tiny_model(mixer, depth="exit", **PAIRS)
    steer(model)
    model.eval()
    tokens = torch.cat([uneven_rows(SITES), random_tokens(2, SITES, seed=9)])
    tokens[1, [2, 3, 4, 9, 11]] = STOP
    said, embedded = model(tokens), model.embed(tokens)
    assert said.layers_BN.unique().tolist()[:2] == [1, 2]
    state, _ = model.blocks[0](embedded, sites_of(embedded), None)
    for row, layers in enumerate(said.layers_BN):
        stayed = layers != 1
        if not stayed.any() or (layers == 3).any():
            continue  # nobody left to pair, or somebody left in between
        end = plain_waist(model, state[row, stayed], torch.arange(SITES)[stayed])
        assert (model.read(end) - said.logits_BNV[row, stayed]).abs().max() <= 1e-11
    assert (said.layers_BN[1] == 1).sum() == 5


def test_act_halts_pairs_in_the_middle() -> None:
    model = tiny_model(depth="act", n_layers=5, multiscale=True)
    steer(model)
    assert isinstance(model.depth, MultiscaleDepth)
    assert isinstance(model.depth.within, ActDepth)
    assert len(model.depth.within.halting) == 2
    sites: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: sites.append(args[0].shape[1]))
    said = model(uneven_rows(SITES)[2:])
    assert sites[:2] == [SITES, SITES // 2]
    assert sites[-1] == SITES
    assert sites[1] > sites[3], "pairs that stopped leave"
    assert said.layers_BN[:, 0].tolist() == [2, 2]
    assert (said.layers_BN[:, 1:-1:2] == said.layers_BN[:, 2::2]).all(), "a pair has two readers"
    assert said.remainder_BN[:, 0].tolist() == [0, 0]
    assert said.remainder_BN[:, 1:].min() > 0


def each_scale_by_hand(
    model: LanguageModel, embedded_ND: Tensor
) -> tuple[Tensor, list[int], list[float]]:
    """Return one row's logits, layers and remainders, halting at the scale of sites by hand."""
    assert isinstance(model.depth, MultiscaleDepth)
    act = model.depth.around
    assert isinstance(act, ActDepth)
    first, *middle, last = model.blocks
    position_N = torch.arange(len(embedded_ND))
    c_N = torch.zeros(len(embedded_ND), dtype=torch.float64)
    sum_ND, left_N, layers_N = torch.zeros_like(embedded_ND), c_N.clone(), c_N.long()
    runs_N, state_ND = torch.ones_like(layers_N).bool(), embedded_ND
    for stage in range(3):
        if not runs_N.any():
            break
        alive, at = state_ND[runs_N][None], position_N[runs_N][None]
        if stage == 1:
            deep = model.depth.over_pairs(middle, alive, at, None)
            state, layers = deep.hidden_BND[0], deep.layers_BN[0]
            assert deep.remainder_BN is not None
            left_N = left_N.index_put((runs_N,), deep.remainder_BN[0])
        else:
            state = (first if stage == 0 else last)(alive, at, None)[0][0]
            layers = torch.ones(len(state)).long()
        p = act.halting[stage](state).sigmoid() if stage < 2 else torch.ones(len(state)).double()
        stops = (c_N[runs_N] + p >= act.threshold) if stage < 2 else p > 0
        weight = torch.where(stops, 1 - c_N[runs_N], p)
        sum_ND = sum_ND.index_put((runs_N,), sum_ND[runs_N] + weight[:, None] * state)
        layers_N = layers_N.index_put((runs_N,), layers_N[runs_N] + layers)
        left_N = left_N.index_put((runs_N,), left_N[runs_N] + torch.where(stops, weight, 0.0))
        c_N = c_N.index_put((runs_N,), c_N[runs_N] + p)
        state_ND = state_ND.index_put((runs_N,), state)
        runs_N = runs_N.index_put((runs_N,), ~stops)
    return model.read(sum_ND), layers_N.tolist(), left_N.tolist()


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_act_at_each_scale_is_what_halting_row_by_row_gives(mixer: str) -> None:
    model = tiny_model(mixer, depth="act", act_scales="each", **PAIRS)
    steer(model)
    tokens = torch.cat([uneven_rows(SITES), random_tokens(2, SITES, seed=9)])
    tokens[1, [2, 3, 4, 9, 11]] = STOP
    said, embedded = model(tokens), model.embed(tokens)
    assert said.remainder_BN is not None
    assert (said.layers_BN == 1).any(), "sites that halt before the middle"
    assert (said.layers_BN == 4).any(), "and some that never do"
    for row in range(len(tokens)):
        logits, layers, left = each_scale_by_hand(model, embedded[row])
        assert (logits - said.logits_BNV[row]).abs().max() <= 1e-11
        assert said.layers_BN[row].tolist() == layers
        assert said.remainder_BN[row].tolist() == pytest.approx(left, abs=1e-12)


def test_the_halting_units_of_each_scale_learn_from_the_ponder_cost() -> None:
    model = tiny_model(depth="act", act_scales="each", **PAIRS).train()
    said = model(random_tokens(3, SITES))
    assert said.layers_BN is not None and said.remainder_BN is not None
    (said.layers_BN + said.remainder_BN).mean().backward()
    halting = [(n, p) for n, p in model.named_parameters() if n.endswith("down.bias")]
    halting = [(name, p) for name, p in halting if ".halting." in name]
    assert {name.split(".")[1] for name, _ in halting} == {"within", "around"}
    for name, parameter in halting:
        assert parameter.grad is not None and parameter.grad < 0, name


@torch.no_grad()
def test_the_threshold_within_can_be_changed_on_a_trained_model() -> None:
    model, layers = tiny_model(depth="act", n_layers=6, multiscale=True), []
    steer(model)
    for model.depth.within.threshold in (0.05, 0.5, 1.0):  # type: ignore[union-attr]
        layers.append(float(model(uneven_rows(SITES)).layers_BN.double().mean()))
    assert layers == sorted(layers)
    assert layers[0] < layers[-1]


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_scaled_mixer_mixes_the_means_and_is_read_back(mixer: str) -> None:
    config = tiny_config(mixer, mixer_scale=3).model
    torch.manual_seed(0)
    scaled = build_mixer(config).double()
    torch.manual_seed(0)
    plain = full_rate_mixer(config).double()  # type: ignore[attr-defined]
    given = hidden(11)
    said = scaled(given, sites_of(given))
    mixed = plain(given[:, :9].reshape(2, 3, 3, 16).mean(2), torch.tensor([[2, 5, 8]] * 2))
    assert not said[:, :2].any()
    for t in range(2, 11):
        assert (said[:, t] - mixed[:, (t + 1) // 3 - 1]).abs().max() <= 1e-15
    short = given[:, :2]
    assert not scaled(short, sites_of(short)).any()


@torch.no_grad()
@pytest.mark.parametrize(
    "knobs", [PAIRS, {"mixer_scale": 2}, {**PAIRS, "mixer_scale": 3}], ids=str
)
def test_the_work_falls_with_the_scale(knobs: dict[str, Any]) -> None:
    rows: list[int] = []
    model = tiny_model(**{"n_layers": 4, **knobs})
    for block in model.blocks:
        inner = getattr(block.mixer, "mixer", block.mixer)
        inner.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    model(random_tokens(1, 48))
    scale = knobs.get("mixer_scale", 1)
    by_pairs = 2 if "multiscale" in knobs else 1
    full, half = 48 // scale, 48 // scale // by_pairs
    assert rows == [full, half, half, full]


REFUSED = [
    ({"multiscale": True, "n_layers": 2}, r"depth=dense needs model\.n_layers of at least 3, got"),
    ({**PAIRS, "depth": "act", "n_layers": 3}, r"depth=act needs model\.n_layers of at least 4"),
    ({"depth": "act", "act_scales": "each"}, r"each does nothing.* model\.multiscale=true"),
    ({**PAIRS, "act_scales": "each"}, r"act_scales=each does nothing.* model\.depth=act"),
    ({"multiscale": "maybe"}, r"model\.multiscale: .*got 'maybe'"),
    ({"mixer_scale": 0}, r"model\.mixer_scale: .*1 <= mixer_scale.*got 0"),
    ({"mixer_scale": 17}, r"mixer_scale must be between 1 and model\.n_seq=16, got 17"),
]


@pytest.mark.parametrize(("knobs", "words"), REFUSED, ids=str)
def test_what_makes_no_sense_is_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(**knobs)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    assert tiny_config(multiscale=True, n_layers=3).model.multiscale
    assert tiny_config(mixer_scale=16).model.mixer_scale == 16
    assert not tiny_config().model.multiscale
    assert tiny_config().model.mixer_scale == 1
