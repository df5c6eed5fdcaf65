"""Loss over a stream: the same for any chunk, by position, in memory that does not grow."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from combinations import LEARNED
from tiny import VOCABULARY, random_tokens, steer, tiny_config, tiny_model

from bkray.errors import ConfigError
from bkray.nn.build import built_in
from bkray.nn.lm import LanguageModel
from bkray.train.step import token_loss_nats
from bkray.train.streaming import stream_loss

TEXT = random_tokens(1, 200, seed=2)[0].numpy().astype(np.uint8)
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "experts": {"n_experts": 4, "top_k": 2},
    "act": {"depth": "act"},
    "exit": {"depth": "exit"},
    "sparse": {"sparsity": "learned"},
}


def model_of(kind: str, mixer: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    model = tiny_model(mixer, dtype=dtype, **KINDS[kind])
    if kind not in ("dense", "experts"):
        steer(model)
    return model


@pytest.mark.parametrize("mixer", ["bk", "linear_recurrence", "mamba", "attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_chunk_changes_no_loss(kind: str, mixer: str) -> None:
    model = model_of(kind, mixer)
    whole = stream_loss(model, TEXT, 150, chunk=150)
    for chunk in (1, 7, 64, 149, 1000):
        said = stream_loss(model, TEXT, 150, chunk=chunk)
        assert said.loss_nats == pytest.approx(whole.loss_nats, abs=1e-10)
        assert said.n_chunks == -(-150 // chunk)
        for one, other in zip(said.buckets, whole.buckets, strict=True):
            assert one.loss_nats == pytest.approx(other.loss_nats, abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_the_chunk_changes_the_loss_by_rounding(kind: str) -> None:
    model = model_of(kind, "bk", torch.float32)
    whole = stream_loss(model, TEXT, 150, chunk=150).loss_nats
    allowed = 1e-6 if kind == "dense" else 1e-4
    for chunk in (1, 7, 64):
        assert abs(stream_loss(model, TEXT, 150, chunk=chunk).loss_nats - whole) <= allowed


@pytest.mark.parametrize("mixer", ["bk", "linear_recurrence", "mamba"])
def test_it_is_the_loss_of_one_pass_over_the_whole_row(mixer: str) -> None:
    model = model_of("dense", mixer)
    tokens = torch.from_numpy(TEXT.astype(np.int64))[None]
    loss_N = token_loss_nats(model(tokens[:, :150]), tokens[:, 1:151])[0].detach()
    said = stream_loss(model, TEXT, 150, chunk=32)
    assert said.loss_nats == pytest.approx(loss_N.mean().item(), abs=1e-10)
    assert said.ppl == pytest.approx(math.exp(said.loss_nats))
    for bucket in said.buckets:
        of_bucket = loss_N[bucket.first - 1 : bucket.last].mean().item()
        assert bucket.loss_nats == pytest.approx(of_bucket, abs=1e-10)


def test_the_buckets_are_powers_of_two_and_cover_all_positions() -> None:
    model = model_of("dense", "bk")
    for n_tokens in (1, 2, 3, 4, 7, 8, 100):
        buckets = stream_loss(model, TEXT, n_tokens, chunk=5).buckets
        positions = [p for b in buckets for p in range(b.first, b.last + 1)]
        assert positions == list(range(1, n_tokens + 1))
        assert all(b.first == 2**k for k, b in enumerate(buckets))
        assert all(math.isfinite(b.loss_nats) for b in buckets)


def test_a_short_text_goes_round_and_says_so() -> None:
    """Behind the last target the text starts again: pass two scores the same pairs of tokens."""
    model = model_of("dense", "bk")
    short = TEXT[:41]
    once, thrice = (stream_loss(model, short, 40 * n, chunk=9) for n in (1, 3))
    assert (once.passes, thrice.passes) == (1.0, 3.0)
    again = np.concatenate([short[:-1], short[:-1], short])
    assert again[40] == short[0]
    laid_out = torch.from_numpy(again.astype(np.int64))[None]
    targets = torch.from_numpy(np.tile(short[1:], 3).astype(np.int64))[None]
    expected = token_loss_nats(model(laid_out[:, :120]), targets).mean().item()
    assert thrice.loss_nats == pytest.approx(expected, abs=1e-10)


def test_progress_is_told_behind_every_chunk() -> None:
    told: list[tuple[int, float]] = []
    model = model_of("dense", "bk")
    said = stream_loss(model, TEXT, 100, chunk=40, progress=lambda *x: told.append(x))
    assert [done for done, _ in told] == [40, 80, 100]
    assert told[-1][1] == pytest.approx(said.loss_nats)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = tiny_model("bk", dropout=0.5).train(training)
    losses = {stream_loss(model, TEXT, 50, chunk=8).loss_nats for _ in range(2)}
    assert len(losses) == 1
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attention_says_its_window() -> None:
    assert stream_loss(model_of("dense", "attention"), TEXT, 50).window == 16
    assert stream_loss(model_of("dense", "bk"), TEXT, 50).window is None


def test_a_nan_is_told_from_its_place_on() -> None:
    model = model_of("dense", "bk")
    with torch.no_grad():
        model.embedding.weight[9] = torch.nan
    text = np.where(TEXT == 9, 8, TEXT)
    text[20] = 9
    said = stream_loss(model, text, 100, chunk=6)
    assert math.isnan(said.loss_nats)
    assert math.isnan(said.ppl)
    assert [math.isnan(b.loss_nats) for b in said.buckets] == [False] * 4 + [True] * 3


def test_what_cannot_be_streamed_is_one_clear_error() -> None:
    model = model_of("dense", "bk")
    with pytest.raises(ConfigError, match="at least 1, got 0 and 8"):
        stream_loss(model, TEXT, 0, chunk=8)
    with pytest.raises(ConfigError, match="at least 1, got 8 and 0"):
        stream_loss(model, TEXT, 8, chunk=0)
    with pytest.raises(ConfigError, match="at least 2 tokens, got 1"):
        stream_loss(model, TEXT[:1], 8)
    learned = built_in(tiny_config(**LEARNED).model, VOCABULARY)
    with pytest.raises(ConfigError, match="LearnedLength takes whole rows alone"):
        stream_loss(learned, TEXT, 8)
