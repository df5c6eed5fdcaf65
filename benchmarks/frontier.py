"""What ``bkray frontier`` costs in evaluations, and how far the quick search of bins falls short.

    python -m benchmarks.frontier [--rounds 9] [--tables 600] [KNOB=VALUE ...]

Costs are the processor's seconds over those of one evaluation of the same windows, in turn (median
of paired ratios, least and most). Nothing is adapted in these models, so that an evaluation is a
whole pass, and each true evaluation at another threshold as dear as can be. The bar is 1.5
evaluations, and 8 more where there is a threshold.

Then ``greedy_with_swaps`` beside all sets, on random tables of 24 rows and 8 to 16 lengths.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks.act import WARM_UP, spread
from benchmarks.idle import MACHINERY, idle_run
from benchmarks.judging import paired
from bkray.nn.act import ActDepth
from bkray.nn.exits import ExitDepth
from bkray.nn.length import LearnedLength
from bkray.nn.lm import LanguageModel
from bkray.ops.frontier import exhaustive, greedy_with_swaps
from bkray.overrides import parse
from bkray.train.evaluate import evaluate
from bkray.train.frontier import N_EVALUATED, frontier, length_frontier
from bkray.train.recorded import candidates_of, cut_losses
from bkray.train.run import Run
from bkray.train.stops import recorded_stops
from bkray.train.subject import windows_of

MODELS: Mapping[str, Mapping[str, Any]] = {
    "dense": {},
    **{name: MACHINERY[name] for name in ("length", "act", "exit")},
}
MOST_PASSES = 1.5
SIZES = ((8, 2), (12, 4), (16, 3), (16, 8))
"""Candidates, and bins to choose."""


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tables", type=int, default=600)
    parser.add_argument("knobs", nargs="*")
    chosen = parser.parse_args()
    for name, machinery in MODELS.items():
        run = idle_run({**parse(chosen.knobs), **machinery})
        for what, work in parts(run).items():
            one_pass = partial(evaluation, run)
            paired(work, one_pass, WARM_UP)
            seconds = paired(work, one_pass, chosen.rounds)
            print(f"{name:7s} {what:18s} {spread(seconds)} evaluations", flush=True)
        most = MOST_PASSES + (N_EVALUATED if "model.depth" in machinery else 0)
        cost = median(one / other for one, other in seconds)
        held = "held" if cost <= most else "MISSED"
        print(f"{name:7s} at most {most:g}: {held}", flush=True)
    for make in KINDS:
        compare_searches(make, chosen.tables // (len(KINDS) * len(SIZES)))


def parts(run: Run) -> Mapping[str, Callable[[], Any]]:
    """Return what a frontier does; the last one is all of it."""
    model, windows = run.model, windows_of(run)
    assert isinstance(model, LanguageModel | LearnedLength)
    candidates = candidates_of(model, run.config.model.n_seq)
    cuts = cut_losses(model, windows, candidates)
    found: dict[str, Callable[[], Any]] = {
        "table of lengths": partial(cut_losses, model, windows, candidates),
        "search of bins": partial(length_frontier, cuts, candidates, (0.01, 0.1, 1.0), ""),
    }
    if isinstance(model, LanguageModel) and isinstance(model.depth, ActDepth | ExitDepth):
        found["stops recorded"] = partial(recorded_stops, model, model.depth, windows)
    return {**found, "all of it": partial(frontier, run)}


def evaluation(run: Run) -> None:
    """Score the validation windows once."""
    inputs_EN, targets_EN, batch_size, autocast = windows_of(run)
    evaluate(run.model, inputs_EN, targets_EN, batch_size=batch_size, autocast=autocast)


def compare_searches(make: Callable[[int, int], Tensor], n_tables: int) -> None:
    """Print by how much the quick search is above the best of all sets."""
    above = []
    for n_candidates, k in SIZES:
        for seed in range(n_tables):
            cost_EN = make(n_candidates, seed)
            (best,) = exhaustive(cost_EN, [k])
            quick = greedy_with_swaps(cost_EN, k)
            means = [float(cost_EN[:, list(columns)].amin(1).mean()) for columns in (quick, best)]
            above.append(means[0] / means[1] - 1)
    exact = sum(excess < 1e-12 for excess in above) / len(above)
    print(
        f"{make.__name__}: greedy with swaps above all sets: at most {max(above):.2%}, mean "
        f"{fmean(above):.3%}, equal in {exact:.1%} of {len(above)} tables",
        flush=True,
    )


def random_table(n_candidates: int, seed: int) -> Tensor:
    """Return costs that know nothing of one another, (E, N)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(24, n_candidates, dtype=torch.float64, generator=draw)


def steep_table(n_candidates: int, seed: int) -> Tensor:
    """Return such costs, most of them nearly 0: a few rows decide, and sets differ by factors."""
    return random_table(n_candidates, seed) ** 8


def falling_table(n_candidates: int, seed: int) -> Tensor:
    """Return costs as of cut rows: each loss falls towards its floor at its own pace, lengths
    cost."""
    draw = torch.Generator().manual_seed(seed)
    pace_E1, floor_E1 = torch.rand(2, 24, 1, dtype=torch.float64, generator=draw)
    share_N = torch.arange(1, n_candidates + 1, dtype=torch.float64) / n_candidates
    cost_EN: Tensor = floor_E1 + torch.exp(-share_N / (0.05 + pace_E1)) + 0.3 * share_N
    return cost_EN


KINDS = (random_table, falling_table, steep_table)


if __name__ == "__main__":
    main()
