"""What a trained model comes to at other lengths than its own, cell by cell.

Letters: R rows, N sites, M sites that are compared, D width, I items.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bkray.data.of_trial import windows
from bkray.data.shards import Shards
from bkray.events import CellDone
from bkray.train import measure, retrieval, strategies
from bkray.train.reach import mean_reach
from bkray.train.run import Run
from bkray.train.shift import shift
from bkray.train.strategies import Span

BUCKETS = 8
"""Equal parts of a row whose loss is told apart."""

COMPARED_SITES = 16
"""Of the second half of each row, whose states are compared: neighbours say much the same."""

REACH_ROWS = 4
"""Rows on which it is looked how far back the mixers look."""

PROJECTION_PAIRS = 128
"""Items of the training text, and their copies, that the probe's projection is fitted to."""

ROUNDS = 3
"""Timings of a pass; their median counts."""


def cells(run: Run, shards: Shards) -> Iterator[CellDone]:
    """Yield a cell for each length and strategy of ``config.mismatch``; keeps the model's mode.

    All strategies and all trials score the same validation tokens of a length, every one of them.
    *Late* is the second half of a row, which lies behind the train length wherever there is one to
    lie behind, and is told at every length so that models of all lengths can be compared on it.
    """
    config = run.config.mismatch
    was_training = run.model.training
    run.model.eval()
    for n_eval in config.evaluated:
        names = ("retrain",) if n_eval == run.config.model.n_seq else config.chosen
        bench = _Bench(run, shards, n_eval)
        for name in names:
            metrics = bench.measure(name) if bench.applies(name) else {}
            yield CellDone(step=run.progress.step, n_eval=n_eval, strategy=name, metrics=metrics)
    run.model.train(was_training)


class _Lines(NamedTuple):
    """Validation rows, and what was said of them: losses in nats and states of some late sites."""

    loss_RN: Tensor
    state_RMD: Tensor


class _Bench:
    """All that the strategies of one length are measured on."""

    def __init__(self, run: Run, shards: Shards, n_eval: int) -> None:
        model, config = run.config.model, run.config.mismatch
        self.run, self.n_eval, self.n_train = run, n_eval, model.n_seq
        self.stride = round(self.n_train * (1 - (config.overlap or 0.0)))
        assert config.windows is not None and config.items is not None
        self.inputs_RN, self.targets_RN = windows(shards, "valid", n_eval, config.windows)
        self.natural_IN = windows(shards, "valid", n_eval, config.items)[0]
        self.items_IN = retrieval.twinned(self.natural_IN)
        late_M = torch.linspace(n_eval // 2, n_eval - 1, min(COMPARED_SITES, n_eval // 2))
        self.late_M = late_M.round().long()
        own_IN = windows(shards, "train", self.n_train, PROJECTION_PAIRS)[0]
        row = [(0, self.n_train)]
        self.project = retrieval.fit(
            *(self._ends(x_IN, row)[:, 0] for x_IN in (own_IN, retrieval.noisy(own_IN)))
        )
        self.ends: dict[tuple[Span, ...], list[Tensor]] = {}
        """Of the items' copies and the items: strategies with the same windows share a pass."""
        if n_eval > self.n_train:
            short_IN = retrieval.twinned(windows(shards, "valid", self.n_train, config.items)[0])
            self.short = self._ranked(row, "none", short_IN)
            half = self.n_train // 2
            self.near_spans = strategies.spans("sliding_window", n_eval, self.n_train, half)
            self.near = self._lines(self.near_spans, "none")
            """By the second halves of windows of the train length: as the model is used to."""

    def applies(self, strategy: str) -> bool:
        """Say whether the model can follow the strategy: a table of positions has an end."""
        return strategy != "extrapolate" or self.run.config.model.position != "learned"

    def measure(self, strategy: str) -> dict[str, float]:
        spans = strategies.spans(strategy, self.n_eval, self.n_train, self.stride)
        pool = strategies.pooling(strategy)
        lines = self._lines(spans, pool)
        metrics = loss_metrics(lines.loss_RN)
        if strategy != "retrain":
            metrics |= self._against_near(lines, (spans, pool))
            metrics |= {"mrr_short": self.short.mrr, "recall_short": self.short.recall}
        n_seen = spans[0][1] - spans[0][0]
        tokens = self.inputs_RN[:REACH_ROWS, -n_seen:].to(self.run.device)
        with self.run.autocast:
            reach = mean_reach(self.run.model, tokens)
        if reach is not None:
            metrics |= {"reach_tokens": reach.tokens, "entropy_nats": reach.entropy_nats}
        read = spans[:1] if strategy == "truncate" else spans  # of an item only its start is kept
        found = self._ranked(read, pool, self.items_IN)
        kept = self.n_train if strategy == "truncate" else self.n_eval
        metrics |= {
            "mrr_long": found.mrr,
            "recall_long": found.recall,
            "items": float(len(self.items_IN)),
            "identical_items": float(retrieval.n_identical(self.items_IN, kept)),
            "identical_natural_items": float(retrieval.n_identical(self.natural_IN, kept)),
        }
        return metrics | self._cost(spans, pool)

    def _against_near(self, lines: _Lines, read_by: tuple[list[Span], str]) -> dict[str, float]:
        """Return loss and states against those of own windows of the train length."""
        if read_by == (self.near_spans, "none"):  # nothing can be told of it against itself
            return {"is_reference": 1.0}
        own = loss_metrics(self.near.loss_RN)["late_loss_nats"]
        moved = shift(lines.state_RMD, self.near.state_RMD)._asdict()
        return {"own_late_loss_nats": own} | {f"shift_{name}": moved[name] for name in moved}

    def _lines(self, spans: list[Span], pool: str) -> _Lines:
        losses, states = [], []
        for inputs, targets in self._batches(self.inputs_RN, self.targets_RN):
            with self.run.autocast:
                said = strategies.read(self.run.model, inputs, spans, pool)
            log_p_RN = said.log_p_BNV.gather(-1, targets[..., None])[..., 0]
            losses.append(-log_p_RN.double().cpu())
            states.append(said.state_BND[:, self.late_M.to(inputs.device)].double().cpu())
        return _Lines(torch.cat(losses), torch.cat(states))

    def _ranked(self, spans: list[Span], pool: str, items_IN: Tensor) -> retrieval.Ranking:
        pair = (retrieval.noisy(items_IN), items_IN)
        known = tuple(spans) if items_IN is self.items_IN else ()
        ends = self.ends.get(known) or [self._ends(x_IN, spans) for x_IN in pair]
        if known:
            self.ends[known] = ends
        copy_ID, item_ID = (self.project(strategies.embedding(x, pool)) for x in ends)
        return retrieval.ranking(copy_ID, item_ID)

    def _ends(self, items_IN: Tensor, spans: list[Span]) -> Tensor:
        """Return the last states of the items' windows, (I, W, D) in float64 on the host."""
        parts = []
        for (tokens,) in self._batches(items_IN):
            with self.run.autocast:
                parts.append(strategies.last_states(self.run.model, tokens, spans).double().cpu())
        return torch.cat(parts)

    def _batches(self, *rows: Tensor) -> Iterator[list[Tensor]]:
        """Yield rows on the device, as many tokens at once as a training step holds."""
        plan = self.run.config.train
        held = plan.batch_size // plan.accumulation * self.n_train
        n_rows = max(1, held // rows[0].shape[1])
        for parts in zip(*(torch.split(x, n_rows) for x in rows), strict=True):
            yield [part.to(self.run.device) for part in parts]

    def _cost(self, spans: list[Span], pool: str) -> dict[str, float]:
        """Return time per scored token, and the memory that a pass adds to the process."""
        tokens = next(self._batches(self.inputs_RN))[0]
        device = self.run.device

        def once() -> None:
            with self.run.autocast:
                strategies.read(self.run.model, tokens, spans, pool)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        with measure.machine_lock():
            measure.forget_peak_memory(device)
            before = measure.peak_memory_mib(device)
            seconds = [_seconds(once) for _ in range(ROUNDS)]
            added = measure.peak_memory_mib(device) - before
        per_token = statistics.median(seconds) / tokens.numel()
        return {"microseconds_per_token": per_token * 1e6, "memory_mib": added}


def loss_metrics(loss_RN: Tensor) -> dict[str, float]:
    """Return mean losses and perplexities: of all, of the second half, and of each part.

    ``loss_nats_to_<n>`` is that of the part whose last site is the ``n``-th.
    """
    n_sites = loss_RN.shape[1]
    whole, late = float(loss_RN.mean()), float(loss_RN[:, n_sites // 2 :].mean())
    metrics = {"loss_nats": whole, "ppl": _exp(whole)}
    metrics |= {"late_loss_nats": late, "late_ppl": _exp(late)}
    first = 0
    for k in range(1, BUCKETS + 1):
        end = n_sites * k // BUCKETS
        if end > first:
            metrics[f"loss_nats_to_{end}"] = float(loss_RN[:, first:end].mean())
        first = end
    return metrics


def _exp(loss_nats: float) -> float:
    return math.inf if loss_nats >= 700 else math.exp(loss_nats)


def _seconds(once: Callable[[], None]) -> float:
    start = time.perf_counter()
    once()
    return time.perf_counter() - start
