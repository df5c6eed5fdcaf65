"""What adaptive machinery costs where nothing is adapted, beside a dense model.

    python -m benchmarks.idle [--pairs 30] [--d-model 64 128] [KNOB=VALUE ...]

Nobody halts, nobody leaves, every token is computed, every row takes the longest bin: the layers
do what a dense model's do, so all that is added is the machinery. Each is timed in turn with a
dense model of the same size on 16 rows of 128 tokens, by the processor's seconds: a pass of the
model in evaluation, and a whole step of training, its loss and optimizer included. The figure is
the median of the paired ratios, least and most behind it. The bar is 10%.

A step of training also pays for what is learned: the losses of further heads, and those of every
bin with the answers behind every cut.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.act import WARM_UP, spread
from benchmarks.judging import paired
from bkray.data.shards import prepare
from bkray.nn.act import ActDepth
from bkray.nn.length import LearnedLength
from bkray.ops.memory import keep_freed_memory
from bkray.overrides import build, parse
from bkray.train.run import Run, next_guard, take_step
from bkray.trial import compose, use_threads, warm_up

MACHINERY: Mapping[str, Mapping[str, Any]] = {
    "act": {"model.depth": "act"},
    "exit": {"model.depth": "exit", "model.exit_threshold": 1.0},
    "sparsity": {"model.sparsity": "learned"},
    "length": {"model.length": "learned"},
    "act and length": {"model.depth": "act", "model.length": "learned"},
}
STANDING_STILL = {"optimizer.lr": 1e-30, "train.device": "cpu"}
"""No step of training makes anybody halt."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--d-model", type=int, nargs="+", default=(64, 128))
    parser.add_argument("knobs", nargs="*")
    chosen = parser.parse_args()
    print("time over dense time, median of paired ratios (min..max); the bar is 1.1")
    for d_model in chosen.d_model:
        knobs = {"model.d_model": d_model, **parse(chosen.knobs)}
        dense = idle_run(knobs)
        for name, machinery in MACHINERY.items():
            adaptive = idle_run({**knobs, **machinery})
            assert_nothing_is_adapted(adaptive)
            for what, work in (("evaluation", one_pass), ("training", one_step)):
                one, other = (partial(work, run) for run in (adaptive, dense))
                paired(one, other, WARM_UP)
                figures = spread(paired(one, other, chosen.pairs))
                print(f"d={d_model:<4d} {name:15s} {what:10s} {figures}", flush=True)


def idle_run(knobs: Mapping[str, Any]) -> Run:
    """Return an untrained trial whose machinery adapts nothing."""
    use_threads(1)
    keep_freed_memory()
    config = build({**STANDING_STILL, **knobs})
    run = compose(config, prepare(config.data, config.model.n_seq), None)
    inner = run.model
    with torch.no_grad():
        if isinstance(inner, LearnedLength):
            inner.predictor.down.bias[-1] = 1e3
            inner = inner.model
        if isinstance(inner.depth, ActDepth):
            for unit in inner.depth.halting:
                nn.init.constant_(unit.down.bias, -20.0)  # type: ignore[union-attr, arg-type]
    warm_up(run)
    return run


def one_batch(run: Run) -> torch.Tensor:
    """Return the first rows of the validation windows."""
    return run.validation[0][: run.config.train.batch_size]


@torch.no_grad()
def one_pass(run: Run) -> None:
    """Run the model in evaluation."""
    run.model.eval()
    run.model(one_batch(run))


def one_step(run: Run) -> None:
    """Take a step of training."""
    run.model.train()
    take_step(run, 1, next_guard(run))


def assert_nothing_is_adapted(run: Run) -> None:
    """Check that every token runs through every layer, and every row to its end."""
    with torch.no_grad():
        said = run.model.eval()(one_batch(run))
    assert (said.layers_BN == run.config.model.n_layers).all()
    assert said.lengths is None or (said.lengths.computed_B == run.config.model.n_seq).all()


if __name__ == "__main__":
    main()
