"""A ladder as a person reads it: the table in the guides' form, and what it comes to in words."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from bkray.report import trends
from bkray.report.ladder import Ladder, Transfer
from bkray.report.ranking import brief
from bkray.report.rung_rows import Line

_BESIDE = {
    "tokens/s": "tokens_per_second",
    "memory GB": "memory_gb",
    "NaN steps": "nan_count",
    "cold start (nats)": "cold_start_nats",
    "schatten s1": "schatten_s1",
    "schatten s2": "schatten_s2",
    "condition number": "condition_number",
}
_ALWAYS = ("tokens/s", "memory GB", "NaN steps", "cold start (nats)")
_MOST_SPIKES, _MOST_SPREAD = 5.0, 0.2
"""The guides' promises: spikes per 1,000 steps, standard deviation of the norm over its mean."""
_CLIMBED = (
    "One model climbed: at a longer length it has trained for longer, so what falls from length "
    "to length is not the work of context alone."
)

Cells = list[list[str]]


def cells(known: Ladder) -> Cells:
    """Return the lines of the table, its headings first."""
    several = len({line.learning_rate for line in known.lines}) > 1
    beside = [k for k, v in _BESIDE.items() if k in _ALWAYS or _has(known.lines, v)]
    heads = ["seq_len", "loss / perplexity", "spikes", "grad norm", *(["lr"] if several else [])]
    shown = [[*heads, *beside, "perplexity_degradation", "seeds"]]
    for line, ratio in zip(known.lines, known.degradation, strict=True):
        rate = [brief(line.learning_rate)] if several else []
        numbers = [brief(line.mean(_BESIDE[name])) for name in beside]
        first = [str(line.n_seq), _result(line), _spikes(line), _norm(line)]
        shown.append([*first, *rate, *numbers, _ratio(ratio), _seeds(line)])
    return shown


def columns(known: Ladder) -> dict[str, list[Any]]:
    """Return the same table as numbers: name to values, one per line."""
    metrics = {
        "loss": "loss",
        "perplexity": "perplexity",
        "spike_count": "spike_count",
        "gradient_norm": "gradient_norm",
        "gradient_norm_std": "gradient_norm_std",
        **{name: name for name in _BESIDE.values()},
    }
    numbers = {key: [line.mean(name) for line in known.lines] for key, name in metrics.items()}
    return {
        "seq_len": [line.n_seq for line in known.lines],
        "learning_rate": [line.learning_rate for line in known.lines],
        "outcome": [line.outcome for line in known.lines],
        **{key: values for key, values in numbers.items() if any(v is not None for v in values)},
        "perplexity_degradation": list(known.degradation),
        "seeds": [len(line.rows) for line in known.lines],
        "n_diverged": [line.n_diverged for line in known.lines],
    }


def sentences(known: Ladder) -> list[str]:
    """Return what the table comes to, a sentence or two each."""
    said = [_stable(known), _shares(known.main), _cold_start(known.main)]
    said += [_transfer(known.transfer)] if known.transfer is not None else []
    said += [_promises(known), *(trends.said(trend) for trend in known.trends)]
    said += [_CLIMBED] if known.mode == "carry" else []
    return [sentence for sentence in said if sentence]


def _stable(known: Ladder) -> str:
    diverged = [f"{one.n_seq:,}" for one in known.main if one.outcome == "diverged"]
    others = [
        f"{o.n_seq:,} {o.outcome}" for o in known.main if o.outcome not in ("ok", "diverged")
    ]
    longest = known.longest_stable
    words = f"{longest:,} tokens" if longest is not None else "none"
    if len(diverged) + len(others) < len(known.main) and not diverged and not others:
        words += ", the longest tried"
    words += f"; diverged: {', '.join(diverged)}" if diverged else ""
    words += f"; without an answer: {', '.join(others)}" if others else ""
    return f"Longest stable length: {words}."


def _shares(main: Sequence[Line]) -> str:
    steps = [line.mean("steps") or 0.0 for line in main]
    seconds = [line.mean("train_seconds") or 0.0 for line in main]
    if not sum(steps) or not sum(seconds):
        return ""
    shares = [
        f"{line.n_seq:,} {n / sum(steps):.0%} and {time / sum(seconds):.0%}"
        for line, n, time in zip(main, steps, seconds, strict=True)
    ]
    return f"Share of the steps and of the training time: {', '.join(shares)}."


def _cold_start(main: Sequence[Line]) -> str:
    known = [line for line in main if line.mean("cold_start_nats") is not None]
    if not known:
        return ""
    pairs = [(line.mean("loss") or 0.0, line.mean("cold_start_nats") or 0.0) for line in known]
    (loss, cold), (far_loss, far_cold) = pairs[0], pairs[-1]
    words = (
        "Cold start, by how much the loss of all sites lies above that of the second half of each "
        f"window: {cold:.4f} of {loss:.4f} nats at {known[0].n_seq:,} tokens"
    )
    if len(known) == 1:
        return f"{words}."
    return (
        f"{words}, {far_cold:.4f} of {far_loss:.4f} at {known[-1].n_seq:,}. Between the two the "
        f"loss changes by {far_loss - loss:+.4f} nats, of that cold start {far_cold - cold:+.4f}."
    )


def _transfer(found: Transfer) -> str:
    rivals = []
    for one in found.neighbours:
        said = "which diverged"
        if one.worse_nats is not None and one.p is not None:
            said = f"{one.worse_nats:+.4f} nats, p = {one.p:.2g}"
        rivals.append(f"{brief(one.learning_rate)} ({said})")
    seeds = f"{found.n_seeds} seed{'s' if found.n_seeds > 1 else ''}"
    words = f"{found.verdict} with {seeds}"
    if found.n_seeds < found.n_seeds_needed:
        words += f", for fewer than {found.n_seeds_needed} decide nothing"
    return (
        f"Transfer of the learning rate: {brief(found.learning_rate)}, the best at the shortest "
        f"length, at {found.n_seq:,} tokens against {' and '.join(rivals)}: {words}."
    )


def _promises(known: Ladder) -> str:
    """Return the guides' promises beside the length that is worst in each."""
    monitor = "on" if known.config.get("train.monitor", "off") != "off" else "off"
    spikes = _worst(known.main, _spike_rate)
    spread = _worst(known.main, _spread)
    broken = _worst(known.main, lambda line: line.mean("nan_count"))
    said = []
    if spikes is not None:
        verdict = _kept(spikes[0] < _MOST_SPIKES)
        said.append(
            f"under 5 spikes per 1,000 steps: {brief(spikes[0])} at {spikes[1]:,}, {verdict}"
        )
    if spread is not None:
        verdict = _kept(spread[0] < _MOST_SPREAD)
        said.append(
            "standard deviation of the gradient norm under 20% of its mean: "
            f"{spread[0]:.0%} at {spread[1]:,}, {verdict}"
        )
    if broken is not None:
        verdict = _kept(broken[0] == 0)
        longest = known.main[-1].n_seq
        said.append(f"no NaN up to {longest:,}: at most {brief(broken[0])} steps, {verdict}")
    return f"The guides' promises, monitor {monitor}: {'; '.join(said)}." if said else ""


def _worst(
    main: Sequence[Line], measure: Callable[[Line], float | None]
) -> tuple[float, int] | None:
    known = [(value, line.n_seq) for line in main if (value := measure(line)) is not None]
    return max(known, default=None)


def _kept(holds: bool) -> str:
    return "kept" if holds else "not kept"


def _spike_rate(line: Line) -> float | None:
    spikes, steps = line.mean("spike_count"), line.mean("steps")
    return None if spikes is None or not steps else 1000 * spikes / steps


def _spread(line: Line) -> float | None:
    mean, std = line.mean("gradient_norm"), line.mean("gradient_norm_std")
    return None if std is None or not mean else std / mean


def _has(lines: Sequence[Line], name: str) -> bool:
    return any(line.mean(name) is not None for line in lines)


def _result(line: Line) -> str:
    loss, perplexity = line.mean("loss"), line.mean("perplexity")
    if loss is None or perplexity is None:
        return line.outcome.upper() if line.outcome != "ok" else "-"
    return f"{loss:.4f} / {perplexity:,.2f}"


def _spikes(line: Line) -> str:
    spikes = line.mean("spike_count")
    return "-" if spikes is None else f"{spikes:.4g}"


def _norm(line: Line) -> str:
    mean, std = line.mean("gradient_norm"), line.mean("gradient_norm_std")
    if mean is None or std is None:
        return "-"
    form = ".2f" if std >= 0.01 and mean < 1e5 else ".3g"
    return f"{mean:{form}} +- {std:{form}}"


def _ratio(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _seeds(line: Line) -> str:
    lost = f", {line.n_diverged} diverged" if line.n_diverged else ""
    return f"{len(line.rows)}{lost}"
