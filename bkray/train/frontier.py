"""Inference knobs swept from one checkpoint: quality against compute, without training again.

Letters: E windows, K lengths, T thresholds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bkray.nn.act import ActDepth
from bkray.nn.act_exit import ActExitDepth
from bkray.nn.exits import ExitDepth
from bkray.nn.lm import LanguageModel
from bkray.ops.frontier import best_bins_of_each, stop_curve
from bkray.train.recorded import Cuts, Windows, beyond_of, candidates_of, cut_losses
from bkray.train.run import Run
from bkray.train.stops import Stops, recorded_stops, scored_at_each
from bkray.train.subject import model_of, windows_of, within

N_BINS = (1, 2, 4, 8)
PRICES = (0.01, 0.1, 1.0)
"""Nats per token that the longest length costs more than none; the trial's own penalty joins."""
N_ESTIMATED, N_EVALUATED = 200, 8

NO_HOURGLASS = (
    "the threshold is not swept with model.multiscale=true: a token's output depends on where "
    "its neighbours stop, so one pass tells too little"
)
NO_PAIR = (
    "the thresholds are not swept with model.depth=act_exit: two of them decide together who stops"
)


@dataclass(frozen=True, slots=True)
class BinsPoint:
    """A set of length bins and what it gives, over all sites of all windows."""

    price_nats: float | None
    """The bins are the best ones at it; ``None`` for those of the trial, as predicted."""
    lengths: tuple[int, ...]
    mean_length: float
    loss_nats: float
    ppl: float
    speedup_estimate: float
    """By arithmetic: longest length over mean length."""


@dataclass(frozen=True, slots=True)
class LengthFrontier:
    """Quality against length, exact: cutting changes nothing in front of the cut."""

    beyond: str
    """Who answers behind the cut."""
    search: str
    candidates: tuple[int, ...]
    loss_nats: tuple[float, ...]
    """With all windows cut at one candidate."""
    points: tuple[BinsPoint, ...]
    predicted: BinsPoint | None
    """What the trial's own predictor chooses among its own bins."""


@dataclass(frozen=True, slots=True)
class StopPoint:
    """Mean layers run and mean loss at a threshold."""

    threshold: float
    avg_layers: float
    loss_nats: float


@dataclass(frozen=True, slots=True)
class Checked:
    """A true evaluation beside the estimate; ``gap_nats`` is true minus estimated loss."""

    evaluated: StopPoint
    estimated: StopPoint
    gap_nats: float


@dataclass(frozen=True, slots=True)
class StopFrontier:
    """Quality against layers. Every site is computed here, whatever a learned length would cut.

    The estimate comes from a pass in which every token runs through every layer. In truth deeper
    layers see the survivors alone: ``checked`` shows how much that matters.
    """

    knob: str
    trained: float
    n_layers: int
    estimate: tuple[StopPoint, ...]
    checked: tuple[Checked, ...]

    @property
    def largest_gap_nats(self) -> float:
        """Size of the largest difference between true and estimated loss."""
        return max(abs(one.gap_nats) for one in self.checked)


@dataclass(frozen=True, slots=True)
class Frontier:
    """All knobs of one checkpoint, on the windows that training evaluates on."""

    step: int
    n_windows: int
    n_seq: int
    lengths: LengthFrontier
    stops: StopFrontier | None
    notes: tuple[str, ...]


def frontier(run: Run) -> Frontier:
    """Sweep the knobs of a trial's model.

    Costs one recorded pass for the lengths; where there is a threshold, one more through all
    layers that reads every layer, and ``N_EVALUATED`` evaluations, of which the pass for the
    lengths is one.

    Raises:
        ConfigError: the user's own model has none of these knobs.
        DataError: a loss is not finite.
    """
    model, knobs = model_of(run), run.config.model
    windows = windows_of(run)
    n_seq = windows.inputs_EN.shape[1]
    candidates = candidates_of(model, n_seq)
    cuts = cut_losses(model, windows, candidates)
    prices = sorted({*PRICES, *([knobs.length_penalty] if knobs.length_penalty else [])})
    lengths = length_frontier(cuts, candidates, prices, beyond_of(model))
    inner = within(model)
    stops = None
    if isinstance(inner.depth, ActDepth | ExitDepth):
        uncut_nats = float(cuts.table_EK[:, -1].mean())
        trained = StopPoint(inner.depth.threshold, cuts.avg_layers, uncut_nats)
        stops = stop_frontier(inner, inner.depth, windows, trained)
    notes = (NO_PAIR,) if isinstance(inner.depth, ActExitDepth) else ()
    if knobs.multiscale and knobs.depth in ("act", "exit"):
        notes = (NO_HOURGLASS,)
    return Frontier(run.progress.step, len(windows.inputs_EN), n_seq, lengths, stops, notes)


def length_frontier(
    cuts: Cuts, candidates: Sequence[int], prices: Sequence[float], beyond: str
) -> LengthFrontier:
    """Return the best bins among the candidates for every price and number of bins."""
    column = {n: i for i, n in enumerate(cuts.lengths)}
    table_EK = cuts.table_EK[:, [column[n] for n in candidates]]
    ks = [k for k in N_BINS if k <= len(candidates)]
    points = []
    for price in prices:
        for best in best_bins_of_each(table_EK, candidates, ks, price):
            search = "exhaustive" if best.is_exhaustive else "greedy with swaps"
            points.append(_bins_point(price, best.lengths, table_EK, candidates, best.chosen_E))
    predicted = None
    if cuts.chosen_E is not None:
        args = (cuts.own_bins, cuts.table_EK, cuts.lengths, cuts.chosen_E)
        predicted = _bins_point(None, *args)
    loss_nats = tuple(table_EK.mean(0).tolist())
    return LengthFrontier(beyond, search, tuple(candidates), loss_nats, tuple(points), predicted)


def _bins_point(
    price: float | None,
    bins: tuple[int, ...],
    table_EK: Tensor,
    lengths: Sequence[int],
    chosen_E: Tensor,
) -> BinsPoint:
    mean_length = float(torch.tensor(lengths, dtype=torch.float64)[chosen_E].mean())
    loss_nats = float(table_EK.gather(1, chosen_E[:, None]).mean())
    speedup = lengths[-1] / mean_length
    return BinsPoint(price, bins, mean_length, loss_nats, math.exp(loss_nats), speedup)


def stop_frontier(
    model: LanguageModel, depth: ActDepth | ExitDepth, windows: Windows, trained: StopPoint
) -> StopFrontier:
    """Return the estimated curve over a threshold, and true evaluations beside it.

    ``trained`` is the evaluation at the trained threshold, which is known already.
    """
    is_entropy = isinstance(depth, ExitDepth) and depth.rule == "entropy"
    largest = math.log(model.head.out_features) if is_entropy else 1.0
    recorded = recorded_stops(model, depth, windows)

    def estimated(thresholds: Sequence[float]) -> tuple[StopPoint, ...]:
        return estimate(recorded, thresholds, -1.0 if is_entropy else 1.0)

    chosen = evaluated_thresholds(trained.threshold, largest)
    others = [threshold for threshold in chosen if threshold != trained.threshold]
    scored = dict(zip(others, scored_at_each(others, model, depth, windows), strict=True))
    evaluated = [
        StopPoint(threshold, *scored[threshold]) if threshold in scored else trained
        for threshold in chosen
    ]
    guesses = estimated([point.threshold for point in evaluated])
    return StopFrontier(
        "model.act_threshold" if isinstance(depth, ActDepth) else "model.exit_threshold",
        trained.threshold,
        len(model.blocks),
        estimated([largest * i / N_ESTIMATED for i in range(1, N_ESTIMATED + 1)]),
        tuple(
            Checked(true, guess, true.loss_nats - guess.loss_nats)
            for true, guess in zip(evaluated, guesses, strict=True)
        ),
    )


def evaluated_thresholds(trained: float, largest: float) -> list[float]:
    """Return ``N_EVALUATED`` even steps to ``largest``, the nearest one moved to ``trained``."""
    even = [largest * i / N_EVALUATED for i in range(1, N_EVALUATED + 1)]
    nearest = min(even, key=lambda threshold: abs(threshold - trained))
    return [trained if threshold == nearest else threshold for threshold in even]


def estimate(
    recorded: Stops, thresholds: Sequence[float], sign: float = 1.0
) -> tuple[StopPoint, ...]:
    """Return what each threshold would give, were deeper layers to see every token.

    ``sign`` is -1 where a token stops at or below the threshold.
    """
    levels_T = sign * torch.tensor(thresholds, dtype=torch.float64)
    layers_T, loss_T = stop_curve(*recorded, levels_T)
    numbers = zip(thresholds, layers_T.tolist(), loss_T.tolist(), strict=True)
    return tuple(StopPoint(*point) for point in numbers)
