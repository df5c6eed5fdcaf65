"""Strategies against separate runs of a tiny model, token by token, in float64."""

from typing import Any

import pytest
import torch
from tiny import random_tokens, tiny_model
from torch import Tensor

from bkray.config import STRATEGIES
from bkray.nn.lm import LanguageModel
from bkray.train.strategies import embedding, last_states, pooling, read, spans

L, N = 4, 12
MODELS: dict[str, dict[str, Any]] = {
    "attention rope": {"mixer": "attention", "position": "rope"},
    "attention none": {"mixer": "attention", "position": "none"},
    "attention learned": {"mixer": "attention", "position": "learned"},
    "bk none": {"mixer": "bk"},
}


def model_of(name: str) -> LanguageModel:
    return tiny_model(n_seq=L, **MODELS[name]).eval()


def alone(model: LanguageModel, tokens_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and state behind the last of these tokens, run by themselves."""
    hidden = model.embed(tokens_B)
    for block in model.blocks:
        hidden, _ = block(hidden, torch.arange(hidden.shape[1]).expand(hidden.shape[:2]), None)
    state = model.norm(hidden)[:, -1]
    return model.head(state).log_softmax(-1), state


def slow(
    model: LanguageModel, tokens_BN: Tensor, strategy: str, stride: int
) -> tuple[Tensor, Tensor]:
    """Answer every token by runs that end with it, from the first site of each of its windows."""
    windows = spans(strategy, N, L, stride)
    said = []
    for t in range(N):
        parts = [alone(model, tokens_BN[:, a : t + 1]) for a, b in windows if a <= t < b]
        logs, states = (torch.stack(side) for side in zip(*parts, strict=True))
        pool = pooling(strategy)
        if pool == "none":  # the longest past
            said.append((logs[0], states[0]))
        elif pool == "mean":
            said.append((logs.mean(0).log_softmax(-1), states.mean(0)))
        else:
            said.append((logs.amax(0).log_softmax(-1), states.amax(0)))
    log_p, state = (torch.stack(side, 1) for side in zip(*said, strict=True))
    return log_p, state


FOLLOWED = [
    (name, strategy)
    for name in MODELS
    for strategy in STRATEGIES
    if (name, strategy) != ("attention learned", "extrapolate")  # its table has 4 positions
]


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize(("name", "strategy"), FOLLOWED)
def test_every_token_is_answered_as_by_runs_of_its_own(
    name: str, strategy: str, stride: int
) -> None:
    model, tokens = model_of(name), random_tokens(3, N)
    seen = read(model, tokens, spans(strategy, N, L, stride), pooling(strategy))
    log_p, state = slow(model, tokens, strategy, stride)
    assert seen.log_p_BNV.shape == (3, N, 11)
    assert torch.allclose(seen.log_p_BNV, log_p, atol=1e-10)
    assert torch.allclose(seen.state_BND, state, atol=1e-10)
    assert torch.allclose(seen.log_p_BNV.exp().sum(-1), torch.ones(3, N).double(), atol=1e-10)


def test_windows_without_overlap_are_the_blocks_of_truncation() -> None:
    assert spans("sliding_window", N, L, L) == spans("truncate", N, L, 1)
    assert spans("truncate", N, L, 1) == [(0, 4), (4, 8), (8, 12)]
    assert spans("sliding_window", N, L, 3) == [(0, 4), (3, 7), (6, 10), (8, 12)]
    assert spans("extrapolate", N, L, 2) == spans("retrain", N, L, 2) == [(0, 12)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_of_the_train_length_is_read_whole(strategy: str) -> None:
    assert spans(strategy, L, L, 2) == [(0, L)]
    model, tokens = model_of("bk none"), random_tokens(2, L)
    whole = model(tokens).logits_BNV.log_softmax(-1)
    seen = read(model, tokens, spans(strategy, L, L, 2), pooling(strategy))
    assert torch.allclose(seen.log_p_BNV, whole, atol=1e-10)


def test_truncation_is_the_blocks_by_themselves() -> None:
    model, tokens = model_of("attention rope"), random_tokens(2, N)
    seen = read(model, tokens, spans("truncate", N, L, 1), "none").log_p_BNV
    blocks = [model(part).logits_BNV.log_softmax(-1) for part in torch.split(tokens, L, dim=1)]
    assert torch.allclose(seen, torch.cat(blocks, 1), atol=1e-10)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_sees_what_comes_later(strategy: str) -> None:
    model, tokens = model_of("attention rope"), random_tokens(2, N)
    other = tokens.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 11
    windows, pool = spans(strategy, N, L, 2), pooling(strategy)
    before, after = (read(model, x, windows, pool) for x in (tokens, other))
    assert torch.allclose(before.log_p_BNV[:, :7], after.log_p_BNV[:, :7], atol=1e-10)
    assert not torch.allclose(before.log_p_BNV[:, 7:], after.log_p_BNV[:, 7:], atol=1e-3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_embedding_pools_the_last_tokens_of_its_windows(strategy: str) -> None:
    model, tokens = model_of("bk none"), random_tokens(3, N)
    windows, pool = spans(strategy, N, L, 3), pooling(strategy)
    windows = windows[:1] if strategy == "truncate" else windows
    seen = embedding(last_states(model, tokens, windows), pool)
    ends = torch.stack([alone(model, tokens[:, a:b])[1] for a, b in windows])
    expected = {"none": ends[-1], "mean": ends.mean(0), "max": ends.amax(0)}[pool]
    assert torch.allclose(seen, expected, atol=1e-10)


def test_an_item_cut_off_is_its_start() -> None:
    model, tokens = model_of("attention rope"), random_tokens(2, N)
    start = embedding(last_states(model, tokens, spans("truncate", N, L, 2)[:1]), "none")
    assert torch.allclose(start, alone(model, tokens[:, :L])[1], atol=1e-10)
