"""Early exit against dense models of every depth, at equal measured time.

    python -m benchmarks.exits [--seeds 3] [--steps 400] [--thresholds 0.5 ...] [KNOB=VALUE ...]

For each seed one model with exits and dense ones of 1 to L layers are trained on the same batches.
The threshold is swept on the one trained model. Losses are those of all validation windows; times
are evaluation in the processor's seconds on the first ``TIMED_ROWS`` of them, each model in turn
with the deepest dense one (median of paired ratios).

``gain`` is by how many nats the dense curve lies above the exits' loss at the exits' own time. The
curve is the least loss of the dense models that are no slower, joined by straight lines; behind
the deepest one it stays level. Above 0 the exits win.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from benchmarks.length import trained
from bkray.nn.exits import ExitDepth
from bkray.nn.lm import LanguageModel
from bkray.overrides import Overrides, acting, build, parse
from bkray.train.measure import speed
from bkray.train.recorded import Windows
from bkray.train.run import Run
from bkray.train.stops import scored_at_each

BASE: Overrides = {"model.depth": "exit", "train.eval_windows": 256, "train.device": "cpu"}
CONFIDENCES, ENTROPIES = (0.3, 0.5, 0.7, 0.9, 1.0), (3.0, 2.0, 1.0, 0.3, 0.0)
"""Thresholds for either rule; with the last one nobody leaves unless its head is certain."""

TIMED_ROWS = 32


class Point(NamedTuple):
    """A model and what it gives; ``time`` is relative to that of the deepest dense one."""

    layers: float
    loss_nats: float
    time: float


def main() -> None:
    """Print every point of every seed, and the means of the gains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--thresholds", type=float, nargs="+")
    parser.add_argument("knobs", nargs="*")
    chosen = parser.parse_args()
    base = {**BASE, "train.steps": chosen.steps, "train.eval_every": chosen.steps}
    base |= parse(chosen.knobs)
    is_entropy = base.get("model.exit_rule") == "entropy"
    thresholds = chosen.thresholds or (ENTROPIES if is_entropy else CONFIDENCES)
    gains: dict[float, list[float | None]] = {threshold: [] for threshold in thresholds}
    for seed in range(chosen.seeds):
        depths, runs = dense_runs({**base, "seed": seed})
        for point in depths:
            print(f"seed {seed}  dense          {shown(point)}", flush=True)
        leaving = trained({**base, "seed": seed}).run
        for threshold in thresholds:
            point = at(threshold, leaving, runs[-1])
            gains[threshold].append(gain(point, depths))
            print(
                f"seed {seed}  exits at {threshold:<5g} {shown(point)}  "
                f"{verdict(gains[threshold][-1])}",
                flush=True,
            )
    for threshold, of_seeds in gains.items():
        print(f"all seeds, exits at {threshold:<5g} {together(of_seeds)}")


def dense_runs(base: Mapping[str, Any]) -> tuple[list[Point], list[Run]]:
    """Return the dense models of 1 to L layers, trained, and what they give."""
    n_layers = build(base).model.n_layers or 1
    models = [
        trained(acting({**base, "model.depth": "dense", "model.n_layers": n}))
        for n in range(1, n_layers + 1)
    ]
    deepest = models[-1].run
    points = [
        Point(depth, one.said["loss_nats"], relative_time(one.run.model, deepest))
        for depth, one in enumerate(models, start=1)
    ]
    return points, [one.run for one in models]


def at(threshold: float, run: Run, deepest: Run) -> Point:
    """Return what the model with exits gives at a threshold."""
    model = run.model
    assert isinstance(model, LanguageModel) and isinstance(model.depth, ExitDepth)
    windows = Windows(*run.validation, run.config.train.batch_size, run.autocast)
    ((layers, loss_nats),) = scored_at_each([threshold], model, model.depth, windows)
    model.depth.threshold = threshold
    return Point(layers, loss_nats, relative_time(model, deepest))


def relative_time(model: nn.Module, deepest: Run) -> float:
    """Return the time of an evaluation over that of the deepest dense model."""
    tokens_BN = deepest.validation[0][:TIMED_ROWS]
    speedup = speed(model, deepest.model, tokens_BN, now=time.process_time).speedup
    assert speedup is not None
    return 1 / speedup


def gain(point: Point, depths: Sequence[Point]) -> float | None:
    """Return by how many nats the dense curve lies above a point at its own time.

    ``None`` where every dense model takes longer.
    """
    by_time = sorted(depths, key=lambda dense: dense.time)
    if point.time < by_time[0].time:
        return None
    least = list(accumulate((dense.loss_nats for dense in by_time), min))
    times = [dense.time for dense in by_time]
    return float(np.interp(point.time, times, least)) - point.loss_nats


def shown(point: Point) -> str:
    """Return the figures of a point."""
    return (
        f"layers {point.layers:.2f}  time {point.time:.3f}  "
        f"loss {point.loss_nats:.4f} nats  perplexity {math.exp(point.loss_nats):.3f}"
    )


def verdict(gained: float | None) -> str:
    """Return which of them is better at that time, and by how much."""
    if gained is None:
        return "no dense model is as quick"
    return f"gain {gained:+.4f} nats: {'win' if gained > 0 else 'lose'}"


def together(gains: Sequence[float | None]) -> str:
    """Return the mean gain of the seeds that can be compared, and how many of them win."""
    known = [gained for gained in gains if gained is not None]
    wins = sum(gained > 0 for gained in known)
    mean = verdict(fmean(known) if known else None)
    return f"{mean} ({wins} of {len(gains)} win, {len(gains) - len(known)} not compared)"


if __name__ == "__main__":
    main()
