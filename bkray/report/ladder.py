"""The length ladder of a sweep: how far it is stable, and whether its learning rate transfers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from bkray import atomic
from bkray.report import trends
from bkray.report.rung_rows import (
    Line,
    best_line,
    degradations,
    is_ladder,
    lines,
    rungs,
)
from bkray.report.trends import Trend
from bkray.rungs import DISTANCES, reach
from bkray.stats import holm, least_pairs, sign_flip_p

FILE = "long_context_results.json"

_ALPHA = 0.05
_JUDGED = ("ok", "diverged")
_NAMES = {
    "loss": "loss",
    "perplexity": "perplexity",
    "gradient_norm_mean": "gradient_norm",
    "gradient_norm_std": "gradient_norm_std",
    "spike_count": "spike_count",
    "nan_count": "nan_count",
    "memory_gb": "memory_gb",
    "tokens_per_second": "tokens_per_second",
    "train_seconds": "train_seconds",
    "steps": "steps",
    "tokens_per_step": "tokens_per_step",
    "context_worth_nats": "context_worth_nats",
    **{name: name for n in DISTANCES for name in (f"context_worth_beyond_{n}_nats",)},
    "schatten_s1": "schatten_s1",
    "schatten_s2": "schatten_s2",
    "condition_number": "condition_number",
    "precision_upgrades": "precision_upgrades",
}
"""Keys of a length in the results, and the metrics that they are means of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """Another learning rate at the longest stable length: how much worse it is than the
    transferred one, in nats per token, and the p-value of that; both ``None`` where a seed of
    either diverged, which counts as worse."""

    learning_rate: float
    worse_nats: float | None
    p: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Whether the rate that was best at the shortest length is best at ``n_seq`` as well.

    It held if it beats each of its neighbours, and did not if one of them beats it: by the
    sign-flip test over ``n_seeds`` pairs, after Holm, at 5%. All else is undecided. Of one that
    ``diverged`` there the best other rate is the only neighbour.
    """

    n_seq: int
    learning_rate: float
    neighbours: tuple[Neighbour, ...]
    n_seeds: int
    n_seeds_needed: int
    """From so many seeds on the test can say anything."""
    verdict: Literal["held", "did not hold", "undecided"]
    diverged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """``lines`` are all that was tried, ``main`` is one line per length: at the learning rate
    that was best at the shortest, or, where it was searched at each, at the best there. A length
    at which the search has tried only some of the rates has no such line yet. Where lengths ran
    without the monitor and with it, all but ``lines`` is of those without.

    ``config`` holds what the sweep gave to every trial. ``degradation`` is the perplexity of each
    of ``lines`` over that of the shortest length; ``None`` where one of the two is missing.
    """

    mode: str
    config: Mapping[str, Any]
    lines: tuple[Line, ...]
    main: tuple[Line, ...]
    degradation: tuple[float | None, ...]
    longest_stable: int | None
    next_diverged: int | None
    """The shortest length that diverged at every rate; see ``bkray.rungs.reach``."""
    transfer: Transfer | None
    trends: tuple[Trend, ...]


def ladder(sweep_dir: Path) -> Ladder | None:
    """Return the ladder of a sweep; ``None`` where it has none, or varies more than that."""
    rows = rungs(sweep_dir)
    if not is_ladder(rows):
        return None
    record = json.loads((sweep_dir / "sweep.json").read_text(encoding="utf-8"))
    base = record.get("base", {})
    tried, rule = lines(rows), base.get("ladder.lr_rule", "given")
    led = [line for line in tried if not line.is_beside]
    if not led:  # those with the monitor may have ended first
        return None
    main = _main(led, searched=rule == "search")
    longest, diverged = reach((line.n_seq, line.outcome) for line in led)
    tested = rule != "given" and longest not in (None, led[0].n_seq)
    ratio = degradations(rows)
    return Ladder(
        mode=rows[0].mode,
        config=base,
        lines=tuple(tried),
        main=tuple(main),
        degradation=tuple(_geometric_mean(line, ratio) for line in tried),
        longest_stable=longest,
        next_diverged=diverged,
        transfer=_transfer(led, main[0].learning_rate, longest) if tested else None,
        trends=tuple(trends.trends(main)),
    )


def plain(known: Ladder) -> dict[str, Any]:
    """Return the ladder as data for JSON; lengths are keys, so they are texts."""
    numbers = [_numbers(*pair) for pair in zip(known.lines, known.degradation, strict=True)]
    results = {str(line.n_seq): numbers[known.lines.index(line)] for line in known.main}
    return {
        "config": dict(known.config),
        "mode": known.mode,
        "results": results,
        "rungs": numbers,
        "longest_stable_length": known.longest_stable,
        "next_diverged_length": known.next_diverged,
        "fits": trends.plain(known.trends),
        "transfer": known.transfer and asdict(known.transfer),
    }


def write_results(sweep_dir: Path, known: Ladder) -> Path:
    """Write ``long_context_results.json``; paths in it are relative to the sweep's folder."""
    path = sweep_dir / FILE
    final = sorted(sweep_dir.glob("trials/*/checkpoints/checkpoint_final.pt"))
    places = [one.relative_to(sweep_dir).as_posix() for one in final]
    atomic.write_json(path, {**plain(known), "final_checkpoints": places})
    return path


def _numbers(line: Line, degradation: float | None) -> dict[str, Any]:
    return {
        "seq_len": line.n_seq,
        "learning_rate": line.learning_rate,
        "outcome": line.outcome,
        "diverged": line.outcome == "diverged",
        "n_diverged": line.n_diverged,
        "monitor_beside": line.is_beside,
        "seeds": [row.seed for row in line.rows],
        **{key: line.mean(name) for key, name in _NAMES.items()},
        "perplexity_degradation": degradation,
        "checkpoints": [row.checkpoint for row in line.rows if row.checkpoint is not None],
    }


def _main(tried: Sequence[Line], *, searched: bool) -> list[Line]:
    lengths = sorted({line.n_seq for line in tried})
    at = {n: [line for line in tried if line.n_seq == n] for n in lengths}
    start = best_line(at[lengths[0]]) or at[lengths[0]][0]
    main = []
    for n in lengths:
        same = [one for one in at[n] if math.isclose(one.learning_rate, start.learning_rate)]
        if not searched:
            main += same[:1]
        elif len(at[n]) >= len(at[lengths[0]]):
            main.append(best_line(at[n]) or (same or at[n])[0])
    return main


def _geometric_mean(line: Line, ratio: Mapping[tuple[str, int], float]) -> float | None:
    known = [ratio.get((row.trial_id, row.n_seq)) for row in line.rows]
    logs = [math.log(one) for one in known if one is not None]
    return math.exp(fmean(logs)) if len(logs) == len(line.rows) else None


def _transfer(tried: Sequence[Line], rate: float, longest: int | None) -> Transfer | None:
    at = [line for line in tried if line.n_seq == longest and line.outcome in _JUDGED]
    own = next((line for line in at if math.isclose(line.learning_rate, rate)), None)
    below = [line for line in at if line.learning_rate < rate and line is not own]
    above = [line for line in at if line.learning_rate > rate and line is not own]
    rivals = [*below[-1:], *above[:1]]  # lines go by rising learning rate
    fell, best = own is not None and own.outcome == "diverged", best_line(at)
    if fell:
        rivals = [best] if best is not None else []
    if own is None or longest is None or not rivals:
        return None
    neighbours = [_neighbour(own, rival) for rival in rivals]
    n_seeds = len(own.rows)
    least = 2 / 2**n_seeds
    verdicts = holm([least if one.p is None else one.p for one in neighbours], _ALPHA)
    worse = [not fell and (one.worse_nats is None or one.worse_nats > 0) for one in neighbours]
    verdict: Literal["held", "did not hold", "undecided"] = "undecided"
    if any(sure and not loses for sure, loses in zip(verdicts, worse, strict=True)):
        verdict = "did not hold"
    elif all(verdicts) and all(worse):
        verdict = "held"
    return Transfer(
        n_seq=longest,
        learning_rate=rate,
        neighbours=tuple(neighbours),
        n_seeds=n_seeds,
        n_seeds_needed=least_pairs(len(rivals), _ALPHA),
        verdict=verdict,
        diverged=fell,
    )


def _neighbour(own: Line, rival: Line) -> Neighbour:
    losses = {row.seed: row.metrics.get("loss") for row in own.rows}
    pairs = [(row.metrics.get("loss"), losses.get(row.seed)) for row in rival.rows]
    worse = [theirs - ours for theirs, ours in pairs if theirs is not None and ours is not None]
    if rival.outcome != "ok" or not worse:
        return Neighbour(learning_rate=rival.learning_rate, worse_nats=None, p=None)
    return Neighbour(
        learning_rate=rival.learning_rate, worse_nats=fmean(worse), p=sign_flip_p(worse)
    )
