"""The guides' promises beside what was measured, with the monitor and without where both ran."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bkray.report.ladder import Ladder
from bkray.report.ranking import brief
from bkray.report.rung_rows import Line

MOST_SPIKES, MOST_SPREAD = 5.0, 0.2
"""Spikes per 1,000 steps, and standard deviation of the gradient norm over its mean."""

_EQUAL = ("loss", "gradient_norm", "gradient_norm_std", "spike_count", "nan_count")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A length without the monitor and with it, at one learning rate."""

    without: Line
    monitored: Line

    @property
    def of_both(self) -> "Pair | None":
        """The seeds that both have: of a running sweep some are still alone."""
        seeds = {row.seed for row in self.without.rows} & {r.seed for r in self.monitored.rows}
        if not seeds:
            return None
        without, monitored = (
            Line(tuple(row for row in line.rows if row.seed in seeds))
            for line in (self.without, self.monitored)
        )
        return Pair(without=without, monitored=monitored)

    @property
    def is_equal(self) -> bool:
        """Whether every number that the monitor could have changed is the very same."""
        return _numbers(self.without) == _numbers(self.monitored)

    @property
    def n_precise(self) -> float:
        """Mixers that the monitor let scan in float64, mean over the seeds."""
        return self.monitored.mean("precision_upgrades") or 0.0


def pairs(known: Ladder) -> list[Pair]:
    """Return the lengths that ran without the monitor and with it, one pair per length."""
    beside = {(one.n_seq, one.learning_rate): one for one in known.lines if one.is_beside}
    found = [(one, beside.get((one.n_seq, one.learning_rate))) for one in known.main]
    return [Pair(without=one, monitored=other) for one, other in found if other is not None]


def columns(known: Ladder) -> dict[str, list[Any]]:
    """Return the promises of each pair, a line for either of it: heading to values; empty
    without pairs."""
    sides = [
        (pair, line, monitor)
        for pair in pairs(known)
        for line, monitor in ((pair.without, "off"), (pair.monitored, "on"))
    ]
    if not sides:
        return {}
    lines = [line for _, line, _ in sides]
    return {
        "seq_len": [line.n_seq for line in lines],
        "monitor": [monitor for _, _, monitor in sides],
        "spikes per 1,000 steps (< 5)": [_spike_rate(line) for line in lines],
        "std / mean of the norm (< 0.2)": [_spread(line) for line in lines],
        "NaN steps (0)": [line.mean("nan_count") for line in lines],
        "loss": [line.mean("loss") for line in lines],
        "mixers in float64": [pair.n_precise if on == "on" else None for pair, _, on in sides],
        "promises kept": [_kept_of(line) for line in lines],
    }


def cells(known: Ladder) -> list[list[str]]:
    """Return the lines of the table, its headings first; empty without pairs."""
    found = columns(known)
    lines = [[brief(value) for value in line] for line in zip(*found.values(), strict=True)]
    return [list(found), *lines] if lines else []


def sentences(known: Ladder) -> list[str]:
    """Return what is kept at the worst length, and what the monitor changed."""
    both = [both for pair in pairs(known) if (both := pair.of_both) is not None]
    return [one for one in (_worst_lengths(known), _changed(both)) if one]


def _worst_lengths(known: Ladder) -> str:
    """Return the promises beside the length that is worst in each.

    What diverged keeps none of them, and its numbers, of the steps before it fell, tell nothing.
    """
    beside = any(line.is_beside for line in known.lines)
    given = known.config.get("train.monitor", "off") != "off"
    monitor = "on" if given and not beside else "off"
    kept = [[row for row in line.rows if row.outcome != "diverged"] for line in known.main]
    sound = [Line(tuple(rows)) for rows in kept if rows]
    spikes, spread = _worst(sound, _spike_rate), _worst(sound, _spread)
    broken = _worst(sound, lambda line: line.mean("nan_count"))
    said = []
    if spikes is not None:
        verdict = _kept(spikes[0] < MOST_SPIKES)
        said.append(
            f"under 5 spikes per 1,000 steps: {brief(spikes[0])} at {spikes[1]:,}, {verdict}"
        )
    if spread is not None:
        verdict = _kept(spread[0] < MOST_SPREAD)
        said.append(
            "standard deviation of the gradient norm under 20% of its mean: "
            f"{spread[0]:.1%} at {spread[1]:,}, {verdict}"
        )
    if broken is not None:
        verdict = _kept(broken[0] == 0)
        said.append(
            f"no NaN up to {sound[-1].n_seq:,}: at most {brief(broken[0])} steps, {verdict}"
        )
    if fell := [line.n_seq for line in known.main if line.n_diverged]:
        said.append(f"broken by what diverged at {_listed(fell)}")
    return f"The guides' promises, monitor {monitor}: {'; '.join(said)}." if said else ""


def _changed(found: Sequence[Pair]) -> str:
    """Return at which lengths the monitor changed a number, and by what right."""
    same = [pair.without.n_seq for pair in found if pair.is_equal]
    said = []
    if same:
        said.append(
            f"at {_listed(same)} every loss, gradient norm, spike and NaN is the very same number"
        )
    for pair in found:
        if pair.is_equal:
            continue
        ours, theirs = pair.monitored.mean("loss"), pair.without.mean("loss")
        by = "" if ours is None or theirs is None else f", loss {ours - theirs:+.2g} nats"
        why = f"mixers that scanned in float64: {brief(pair.n_precise)}"
        if not pair.n_precise:
            why = "though nothing was scanned in float64, which is no work of the monitor"
        said.append(f"at {pair.without.n_seq:,} numbers differ ({why}{by})")
    return f"With the monitor against without: {'; '.join(said)}." if said else ""


def _numbers(line: Line) -> dict[int, list[str]]:
    """Return the numbers by seed, in words that are exact: one NaN is like another."""
    return {
        row.seed: [row.outcome, *(repr(row.metrics.get(name)) for name in _EQUAL)]
        for row in line.rows
    }


def _kept_of(line: Line) -> str | None:
    if line.outcome not in ("ok", "diverged"):
        return None
    rate, spread, broken = _spike_rate(line), _spread(line), line.mean("nan_count")
    held = [
        rate is not None and rate < MOST_SPIKES,
        spread is not None and spread < MOST_SPREAD,
        broken == 0,
    ]
    return "none: diverged" if line.n_diverged else f"{sum(held)} of {len(held)}"


def _worst(
    sound: Sequence[Line], measure: Callable[[Line], float | None]
) -> tuple[float, int] | None:
    known = [(value, line.n_seq) for line in sound if (value := measure(line)) is not None]
    return max(known, default=None)


def _spike_rate(line: Line) -> float | None:
    spikes, steps = line.mean("spike_count"), line.mean("steps")
    return None if spikes is None or not steps else 1000 * spikes / steps


def _spread(line: Line) -> float | None:
    mean, std = line.mean("gradient_norm"), line.mean("gradient_norm_std")
    return None if std is None or not mean else std / mean


def _kept(holds: bool) -> str:
    return "kept" if holds else "not kept"


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(f"{n:,}" for n in lengths)
