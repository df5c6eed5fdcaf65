"""The guides at long contexts: metrics, spikes, chunks, streams."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch
from guided import V, small, tokens
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.guides import (
    LanguageModel,
    LongContextMetrics,
    LongContextTrainer,
    MemoryOptimization,
    StreamingEvaluator,
)
from bkray.nn.build import language_model
from bkray.overrides import build
from bkray.train.step import token_loss_nats

FIELDS = (
    "seq_len loss perplexity gradient_norm gradient_norm_mean gradient_norm_std memory_gb "
    "tokens_per_second spike_count nan_count inf_count schatten_s1 schatten_s2 condition_number "
    "learning_rate step epoch"
)
N = 32


def model_of(**knobs: Any) -> LanguageModel:
    torch.manual_seed(0)
    chosen = {"d_model": 16, "n_layers": 2, "n_seq": N, "num_experts": 1, "dropout_p": 0.0}
    return LanguageModel(V, **{**chosen, **knobs}).double()


def batches(n_sites: int = N, n_batches: int = 3) -> list[tuple[Tensor, Tensor]]:
    rows = [tokens(2, n_sites + 1, seed) for seed in range(n_batches)]
    return [(row[:, :-1], row[:, 1:]) for row in rows]


def trainer_of(model: nn.Module, lr: float = 1e-2, **knobs: Any) -> LongContextTrainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return LongContextTrainer(model, optimizer, **{"say": lambda _: None, **knobs})


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_metrics_have_every_field_of_the_guides() -> None:
    assert {field.name for field in fields(LongContextMetrics)} == set(FIELDS.split())


def test_an_epoch_says_what_its_steps_were() -> None:
    model, twin = model_of(), model_of()
    said = trainer_of(model, grad_clip=0.25).train_epoch(batches(), epoch=2)
    optimizer, losses, norms = torch.optim.SGD(twin.parameters(), lr=1e-2), [], []
    for x, y in batches():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(twin(x).flatten(0, 1), y.flatten())
        torch.autograd.backward(loss)
        norms.append(nn.utils.clip_grad_norm_(twin.parameters(), 0.25).item())
        losses.append(loss.item())
        optimizer.step()
    assert (said.seq_len, said.epoch, said.step) == (N, 2, 3)
    assert said.loss == pytest.approx(sum(losses) / 3, rel=1e-10)
    assert said.perplexity == pytest.approx(math.exp(said.loss))
    assert said.gradient_norm == pytest.approx(norms[-1], rel=1e-10)
    norm = torch.tensor(norms, dtype=torch.float64)
    assert said.gradient_norm_mean == pytest.approx(norm.mean().item(), rel=1e-10)
    assert said.gradient_norm_std == pytest.approx(norm.std(correction=0).item(), rel=1e-6)
    assert said.gradient_norm_cv == said.gradient_norm_std / said.gradient_norm_mean
    assert said.memory_gb > 0 and said.tokens_per_second > 0 and said.learning_rate == 1e-2
    assert (said.spike_count, said.nan_count, said.inf_count) == (0, 0, 0)
    assert (said.schatten_s1, said.schatten_s2, said.condition_number) == (None, None, None)
    assert (parameters(model) - parameters(twin)).abs().max() < 1e-10


@pytest.mark.parametrize("chunk", [1, 7, 16, N, 100])
def test_chunks_change_nothing_but_memory(chunk: int) -> None:
    whole, parts = model_of(), model_of()
    expected = asdict(trainer_of(whole).train_epoch(batches()))
    said = asdict(trainer_of(parts, memory=MemoryOptimization(chunk=chunk)).train_epoch(batches()))
    for name in ("loss", "gradient_norm", "gradient_norm_mean"):
        assert said[name] == pytest.approx(expected[name], rel=1e-10)
    assert (parameters(parts) - parameters(whole)).abs().max() < 1e-10


def test_no_more_sites_than_a_chunk_run_at_once() -> None:
    model, seen = model_of(), set()
    model.language_model.blocks[0].register_forward_pre_hook(
        lambda _, args: seen.add(args[0].shape[1])
    )
    trainer_of(model, memory=MemoryOptimization(chunk=8)).train_epoch(batches())
    assert seen == {8}
    seen.clear()
    off = MemoryOptimization(enabled=False, chunk=8)
    trainer_of(model, memory=off).train_epoch(batches())
    assert seen == {N}


def test_a_model_climbs_the_lengths_in_their_order() -> None:
    model, lines = model_of(), []
    loaders = {n: batches(n) for n in (32, 8, 16)}
    said = trainer_of(model, lr=0.1, say=lines.append).train_multi_length(loaders, epochs=2)
    assert list(said) == [8, 16, 32]
    assert [(one.seq_len, one.epoch, one.step) for one in said.values()] == [
        (8, 2, 6),
        (16, 2, 12),
        (32, 2, 18),
    ]
    assert len(lines) == 6
    pattern = (
        r"Epoch 2 \| Seq 32 \| Loss \d\.\d{4} \| PPL \d+\.\d\d \| Grad \d+\.\d\d \+- \d+\.\d\d "
        r"\| Spikes 0 \| NaN 0 \| \d+\.\d\d GB \| \d+ tok/s"
    )
    assert re.fullmatch(pattern, lines[-1])


def test_a_spike_is_told_at_once_and_others_at_the_interval() -> None:
    model, lines = model_of(), []
    trainer = trainer_of(model, lr=0.0, log_interval=2, say=lines.append)

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        for scale, (x, y) in zip((1.0, 1.0, 200.0, 200.0), batches(n_batches=4), strict=True):
            model.language_model.head.weight.data.mul_(scale)
            yield x, y

    said = trainer.train_epoch(loader())
    steps = [line for line in lines if line.startswith("Step")]
    assert re.fullmatch(r"Step 2 \| Loss \d\.\d{4}", steps[0])
    assert re.fullmatch(r"Step 3 \| Loss \d+\.\d{4} \| SPIKE \d+\.\d\dx", steps[1])
    assert said.spike_count == sum("SPIKE" in line for line in steps)
    before, after = (float(step.split()[4]) for step in steps[:2])
    assert float(steps[1].split()[-1][:-1]) == pytest.approx(after / before, abs=0.006)


def test_a_loss_that_is_not_finite_is_counted_and_changes_nothing() -> None:
    model = model_of()
    before = parameters(model)
    head = model.language_model.head.weight
    kept = head.detach().clone()
    head.data[0, 0] = math.nan
    said = trainer_of(model).train_epoch(batches(n_batches=1))
    head.data.copy_(kept)
    assert torch.equal(parameters(model), before)
    assert (said.nan_count, said.inf_count, said.spike_count) == (1, 0, 1)
    assert math.isnan(said.loss) and math.isnan(said.gradient_norm_mean)


@pytest.mark.parametrize(("value", "counts"), [(math.nan, (1, 0)), (math.inf, (0, 1))])
def test_a_gradient_that_is_not_finite_is_counted_and_changes_nothing(
    value: float, counts: tuple[int, int]
) -> None:
    model = model_of()
    before = parameters(model)
    model.language_model.head.weight.register_hook(lambda grad: torch.full_like(grad, value))
    said = trainer_of(model).train_epoch(batches(n_batches=1))
    assert torch.equal(parameters(model), before)
    assert (said.nan_count, said.inf_count, said.spike_count) == (*counts, 0)
    assert math.isfinite(said.loss)


def test_the_monitor_says_how_much_the_model_scatters() -> None:
    said = trainer_of(model_of(), use_birman_schwinger=True).train_epoch(batches())
    assert said.schatten_s1 is not None and said.schatten_s2 is not None
    assert said.schatten_s1 >= said.schatten_s2 > 0
    assert said.condition_number is not None and said.condition_number >= 1
    chunked = trainer_of(
        model_of(), use_birman_schwinger=True, memory=MemoryOptimization(chunk=8)
    ).train_epoch(batches())
    assert chunked.schatten_s2 == pytest.approx(said.schatten_s2, rel=1e-8)


def test_what_a_model_cannot_do_is_refused() -> None:
    config = build({"model.mixer": "attention", "model.d_model": 16}).model
    with pytest.raises(ConfigError, match="needs a model with a BK mixer"):
        trainer_of(language_model(config, V), use_birman_schwinger=True)
    with pytest.raises(ConfigError, match=r"dropout must be 0 to train in chunks, got 0\.1"):
        trainer_of(model_of(dropout_p=0.1), memory=MemoryOptimization())
    with pytest.raises(ConfigError, match="chunk must be at least 1, got 0"):
        MemoryOptimization(chunk=0)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"device=cuda, but torch sees no GPU"):
            StreamingEvaluator(model_of(), device="cuda")


def test_what_does_not_belong_together_is_refused() -> None:
    trainer = trainer_of(model_of())
    with pytest.raises(ConfigError, match="no batch to train on"):
        trainer.train_epoch([])
    with pytest.raises(ConfigError, match=r"one length, got batches of 32 and 8 tokens"):
        trainer.train_epoch([*batches(), *batches(8)])
    with pytest.raises(ConfigError, match=r"dataloaders\[16\] has batches of 8 tokens"):
        trainer.train_multi_length({16: batches(8)})
    with pytest.raises(ConfigError, match=r"one token for each of the 64 inputs, got shape"):
        trainer.train_epoch([(tokens(2, 32), tokens(2, 31))])


def test_models_of_ours_and_other_guides_are_trained_too() -> None:
    config = build({"model.d_model": 16, "model.n_layers": 2}).model
    for model in (language_model(config, V), small()):
        trainer = trainer_of(model, lr=0.1)
        losses = [trainer.train_epoch(batches(24)).loss for _ in range(3)]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("chunk_size", [1, 5, 31, 1000])
def test_a_stream_says_the_loss_of_one_pass_for_any_chunk(chunk_size: int) -> None:
    model = model_of()
    row = tokens(1, N + 1)
    expected = token_loss_nats(model.language_model(row[:, :-1]), row[:, 1:]).mean().item()
    for data in (row[0], row[0].numpy()):
        said = StreamingEvaluator(model, chunk_size).evaluate_streaming(data)
        assert list(said) == ["loss", "perplexity", "total_tokens", "num_chunks"]
        assert said["loss"] == pytest.approx(expected, abs=1e-10)
        assert said["perplexity"] == pytest.approx(math.exp(expected))
        assert said["total_tokens"] == N
        assert said["num_chunks"] == -(-N // chunk_size)


def test_a_stream_goes_no_further_than_it_is_told_or_than_the_data() -> None:
    told: list[int] = []
    evaluator = StreamingEvaluator(model_of(), 4)
    said = evaluator.evaluate_streaming(
        tokens(1, N)[0], 10, progress=lambda done, _: told.append(done)
    )
    assert (said["total_tokens"], said["num_chunks"], told) == (10, 3, [4, 8, 10])
    assert evaluator.evaluate_streaming(tokens(1, N)[0], 10**6)["total_tokens"] == N - 1


def test_a_stream_that_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data must be one row of tokens, got shape \(2, 8\)"):
        StreamingEvaluator(model_of()).evaluate_streaming(tokens(2, 8))
    with pytest.raises(ConfigError, match="at least 1, got 0 and 4096"):
        StreamingEvaluator(model_of()).evaluate_streaming(tokens(1, 1)[0])
    with pytest.raises(ConfigError, match=f"position=learned knows {N} positions"):
        StreamingEvaluator(model_of()).evaluate_streaming(tokens(1, N + 2)[0])
