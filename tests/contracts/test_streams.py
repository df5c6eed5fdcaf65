"""A row that comes in chunks says what it says at once, in every model that can take it so.

Letters: B batch, N sites, W sites of a window.
"""

from typing import Any

import pytest
import torch
from combinations import COMBINATIONS, combined, within
from tiny import GO, STOP, VOCABULARY, random_tokens, tiny_config, tiny_model, uneven_rows
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.nn.build import built_in
from bkray.nn.lm import Carried, LanguageModel, Prediction, check_streams

SITES = 16
SPLITS = ((16,), (8, 8), (1,) * 16, (1, 15), (15, 1), (5, 3, 7, 1))

WHOLE = [c for c in COMBINATIONS if any(w in c[1] for w in ("multiscale", "scaled", "learned"))]
CHUNKED = [c for c in COMBINATIONS if c not in WHOLE]


def in_chunks(model: LanguageModel, tokens: Tensor, split: tuple[int, ...]) -> Prediction:
    """Return what is said of the chunks, together."""
    carried, said = None, []
    for chunk in torch.split(tokens, split, dim=1):
        prediction, carried = model.stream(chunk, carried)
        said.append(prediction)
    together = [
        None if getattr(said[0], name) is None else torch.cat([getattr(s, name) for s in said], 1)
        for name in ("logits_BNV", "layers_BN", "remainder_BN")
    ]
    return Prediction(*together)  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("combination", CHUNKED, ids="-".join)
def test_chunks_of_any_size_say_what_the_whole_row_says(combination: Any) -> None:
    model, tokens = combined(combination), uneven_rows(SITES)
    whole: Prediction = model(tokens)
    for split in SPLITS:
        said = in_chunks(within(model), tokens, split)
        assert (said.logits_BNV - whole.logits_BNV).abs().max() <= 1e-10, split
        assert torch.equal(said.layers_BN, whole.layers_BN), split
        if whole.remainder_BN is not None:
            assert (said.remainder_BN - whole.remainder_BN).abs().max() <= 1e-10, split


@torch.no_grad()
@pytest.mark.parametrize("combination", CHUNKED, ids="-".join)
def test_in_training_too(combination: Any) -> None:
    model, tokens = combined(combination).train(), uneven_rows(SITES)
    whole: Prediction = model(tokens)
    for split in SPLITS:
        said = in_chunks(within(model), tokens, split)
        assert (said.logits_BNV - whole.logits_BNV).abs().max() <= 1e-10, split


@torch.no_grad()
@pytest.mark.parametrize("combination", CHUNKED, ids="-".join)
def test_what_is_carried_does_not_grow(combination: Any) -> None:
    model, tokens = combined(combination), random_tokens(2, 12)
    model = within(model)

    def sizes(carried: Carried) -> list[Any]:
        return [
            [part.shape for part in (state if isinstance(state, tuple) else (state,))]
            for state in carried.states
            if state is not None
        ]

    first = model.stream(tokens)[1]
    later = model.stream(tokens[:, :4], first)[1]
    assert later.n_sites == SITES
    assert len(sizes(first)) > 0
    assert sizes(first) == sizes(later)[: len(sizes(first))]


@torch.no_grad()
@pytest.mark.parametrize("combination", CHUNKED, ids="-".join)
def test_a_nan_comes_out_where_it_went_in_and_in_no_other_row(combination: Any) -> None:
    model, tokens = combined(combination), random_tokens(2, SITES)
    tokens[0, 6] = STOP
    tokens[:, 7:] = GO
    tokens[1] = GO
    within(model).embedding.weight[STOP, 3] = torch.nan
    said = in_chunks(within(model), tokens, (5, 3, 8)).logits_BNV
    assert said[0, 6].isnan().all()
    assert said[1].isfinite().all()
    if combination[0] != "attention":  # torch's own multiplies a later NaN by a weight of 0
        assert said[0, :5].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("combination", WHOLE, ids="-".join)
def test_a_model_of_whole_rows_says_so(combination: Any) -> None:
    model = combined(combination)
    with pytest.raises(ConfigError, match=r"chunk to chunk: use .*(multiscale=false|scale=1)"):
        check_streams(model)
    if isinstance(model, LanguageModel):
        with pytest.raises(ConfigError, match="chunk to chunk"):
            model.stream(uneven_rows(SITES))


def test_a_module_that_never_heard_of_chunks_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear takes whole rows alone"):
        check_streams(nn.Linear(2, 2))


@torch.no_grad()
@pytest.mark.parametrize("position", ["none", "rope"])
def test_attention_hears_the_last_sites_of_its_window_alone(position: str) -> None:
    """A window of 8 over 3 layers reaches 21 sites back, in one pass as in chunks."""
    model = tiny_model("attention", position=position, n_seq=8)
    tokens = random_tokens(2, 60)
    whole, _ = model.stream(tokens)
    for split in ((20, 40), (7,) * 8 + (4,), (1,) * 60):
        said = in_chunks(model, tokens, split).logits_BNV
        assert (said - whole.logits_BNV).abs().max() <= 1e-10
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % VOCABULARY
    moved = (model.stream(other)[0].logits_BNV - whole.logits_BNV).abs().amax((0, 2))
    assert moved[21] > 1e-9
    assert moved[22:].max() <= 1e-13
    assert (model(tokens).logits_BNV - whole.logits_BNV)[:, :8].abs().max() <= 1e-12
    assert (model(tokens).logits_BNV - whole.logits_BNV)[:, 8:].abs().max() > 1e-6


@torch.no_grad()
def test_a_window_counts_the_tokens_that_run() -> None:
    """With stopped tokens between them, the last 4 that run lie further back than 4 sites."""
    model = combined(("attention", "act", "one", "rope"))
    for block in within(model).blocks:
        block.mixer.window = 4
    tokens = uneven_rows(40)
    whole, _ = within(model).stream(tokens)
    assert whole.layers_BN is not None and whole.layers_BN[2:].unique().numel() == 3
    for split in ((1,) * 40, (3, 30, 7), (20, 20)):
        said = in_chunks(within(model), tokens, split).logits_BNV
        assert (said - whole.logits_BNV).abs().max() <= 1e-10


@torch.no_grad()
def test_rope_is_as_exact_a_million_tokens_on() -> None:
    model = tiny_model("attention", n_seq=16, dtype=torch.float32)
    tokens = random_tokens(1, 16)
    near = model(tokens).logits_BNV
    far, _ = model.stream(tokens, Carried(2**20, (None,) * 3))
    assert (far.logits_BNV - near).abs().max() <= 1e-6


@torch.no_grad()
def test_attention_without_a_window_carries_nothing() -> None:
    model = tiny_model("attention")
    model.blocks[0].mixer.window = None
    with pytest.raises(ConfigError, match="has no bounded state"):
        model.stream(random_tokens(1, 4))


def test_more_tokens_than_learned_positions_are_refused_in_chunks_too() -> None:
    model = tiny_model(position="learned", n_seq=8)
    _, carried = model.stream(random_tokens(1, 6))
    model.stream(random_tokens(1, 2), carried)
    with pytest.raises(ConfigError, match="knows 8 positions, got 9 tokens"):
        model.stream(random_tokens(1, 3), carried)


@torch.no_grad()
def test_a_row_in_which_nobody_runs_keeps_what_it_carried() -> None:
    """The row of STOP is padding in deeper layers while the row of GO runs there."""
    model = combined(("bk", "act", "one", "none"))
    start = torch.full((2, 6), GO)
    middle = torch.cat([torch.full((1, 5), STOP), torch.full((1, 5), GO)])
    _, before = within(model).stream(start)
    said, behind = within(model).stream(middle, before)
    assert said.layers_BN is not None
    assert said.layers_BN.tolist() == [[1] * 5, [3] * 5]
    for layer in (1, 2):
        old, new = before.states[layer], behind.states[layer]
        assert isinstance(old, Tensor) and isinstance(new, Tensor)
        assert torch.equal(old[0], new[0])
        assert not torch.equal(old[1], new[1])


@torch.no_grad()
def test_states_alone_need_no_head() -> None:
    model, tokens = tiny_model("bk"), random_tokens(2, 8)
    asked: list[int] = []
    model.head.register_forward_pre_hook(lambda _, args: asked.append(args[0].numel()))
    said = model(tokens, Carried(), told=False)
    assert said.logits_BNV.numel() == sum(asked) == 0
    expected = model.stream(tokens)[1]
    for state, other in zip(said.carried.states, expected.states, strict=True):
        assert torch.equal(state, other)


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["bk", "linear_recurrence", "mamba"])
def test_scans_carry_float32_under_autocast(mixer: str) -> None:
    model = built_in(tiny_config(mixer).model, VOCABULARY)
    with torch.autocast("cpu", torch.bfloat16):
        _, carried = model.stream(random_tokens(2, 8))  # type: ignore[union-attr]
    states = [s if isinstance(s, tuple) else (s,) for s in carried.states]
    parts = [part for state in states for part in state]
    assert all(isinstance(part, Tensor) and part.dtype == torch.float32 for part in parts)
