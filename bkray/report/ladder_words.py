"""A ladder as a person reads it: the table in the guides' form, and what it comes to in words."""

import math
from collections.abc import Sequence
from typing import Any

from bkray.report import promises, trends
from bkray.report.ladder import Ladder, Neighbour
from bkray.report.ranking import brief
from bkray.report.rung_rows import Line
from bkray.rungs import DISTANCES
from bkray.stats import bootstrap_interval

_BESIDE = {
    "tokens/s": "tokens_per_second",
    "memory GB": "memory_gb",
    "NaN steps": "nan_count",
    "worth of N/2 tokens before, nats": "context_worth_nats",
    **{f"of all beyond {n:,}, nats": f"context_worth_beyond_{n}_nats" for n in DISTANCES},
    "schatten s1": "schatten_s1",
    "schatten s2": "schatten_s2",
    "condition number": "condition_number",
}
_WORTH = "context_worth_nats"
_ALWAYS = ("tokens/s", "memory GB", "NaN steps", "worth of N/2 tokens before, nats")
_TRANSFER = "Transfer of the learning rate"
_CLIMBED = (
    "One model climbed: at a longer length it has trained for longer, so what falls from length "
    "to length is not the work of context alone."
)

Cells = list[list[str]]


def cells(known: Ladder) -> Cells:
    """Return the lines of the table, its headings first."""
    several = len({line.learning_rate for line in known.lines}) > 1
    in_pairs = any(line.is_beside for line in known.lines)
    beside = [k for k, v in _BESIDE.items() if k in _ALWAYS or _has(known.lines, v)]
    heads = ["seq_len", "loss / perplexity", "spikes", "grad norm"]
    heads += [*(["lr"] if several else []), *(["monitor"] if in_pairs else [])]
    shown = [[*heads, *beside, "perplexity_degradation", "seeds"]]
    for line, ratio in zip(known.lines, known.degradation, strict=True):
        rate = [brief(line.learning_rate)] if several else []
        rate += [_monitor(line)] if in_pairs else []
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
        **({"monitor": [_monitor(line) for line in known.lines]} if promises.pairs(known) else {}),
        **{key: values for key, values in numbers.items() if any(v is not None for v in values)},
        "perplexity_degradation": list(known.degradation),
        "seeds": [len(line.rows) for line in known.lines],
        "n_diverged": [line.n_diverged for line in known.lines],
    }


def sentences(known: Ladder) -> list[str]:
    """Return what the table comes to, a sentence or two each."""
    said = [_stable(known), _shares(known.main), _context(known.main)]
    said += [_tokens(known.main), _transfer(known), *promises.sentences(known)]
    said += [trends.said(trend) for trend in known.trends]
    said += [_CLIMBED] if known.mode == "carry" else []
    return [sentence for sentence in said if sentence]


def _stable(known: Ladder) -> str:
    ok = [line.n_seq for line in known.main if line.outcome == "ok"]
    diverged = [line.n_seq for line in known.main if line.outcome == "diverged"]
    others = [
        f"{o.n_seq:,} {o.outcome}" for o in known.main if o.outcome not in ("ok", "diverged")
    ]
    longest, fell = known.longest_stable, known.next_diverged
    words = f"{longest:,} tokens" if longest is not None else "none"
    if longest is not None and not diverged and not others:
        words += ", the longest tried"
    if fell is not None:
        words += f"; the next length that diverged: {fell:,}"
        beyond = {"diverged": [n for n in diverged if n > fell], "ok": [n for n in ok if n > fell]}
        for outcome, lengths in beyond.items():
            words += f"; beyond it {outcome}: {_listed(lengths)}" if lengths else ""
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


def _tokens(main: Sequence[Line]) -> str:
    """Return how nearly equal the tokens per step are, where rows cannot make them equal."""
    known = {line.n_seq: n for line in main if (n := line.mean("tokens_per_step")) is not None}
    if len(set(known.values())) < 2:
        return ""
    told = ", ".join(f"{n:,.0f} at {n_seq:,}" for n_seq, n in known.items())
    return f"Tokens per step are not the same at all lengths: {told}."


def _context(main: Sequence[Line]) -> str:
    """Return what a past is worth at the longest length, and whether that is anything at all."""
    known = [(line, worth) for line in main if (worth := line.mean(_WORTH)) is not None]
    if not known:
        return ""
    told = [f"{worth:+.4f} nats at {line.n_seq:,}" for line, worth in known]
    longest = known[-1][0]
    seen = [row.metrics[_WORTH] for row in longest.rows if _WORTH in row.metrics]
    spread = bootstrap_interval([value for value in seen if math.isfinite(value)])
    verdict = "one seed tells no interval"
    if spread.low is not None and spread.high is not None:
        meant = "context helps" if spread.low > 0 else "context harms"
        meant = "flat" if spread.low <= 0 <= spread.high else meant
        verdict = f"95% interval {spread.low:+.4f} to {spread.high:+.4f} over {spread.n} seeds"
        verdict += f" at {longest.n_seq:,}: {meant}"
    return (
        "Worth of the N/2 tokens before, by which the loss of the second half of a window is less "
        f"with the first half in front than alone: {', '.join(told)}; {verdict}."
    )


def _transfer(known: Ladder) -> str:
    found = known.transfer
    if found is None:
        was_given = known.config.get("ladder.lr_rule", "given") == "given"
        if was_given or known.longest_stable != known.main[0].n_seq:
            return ""
        return f"{_TRANSFER}: not tested, the longest stable length is the shortest one."
    rivals = [_rival(one, found.diverged) for one in found.neighbours]
    seeds = f"{found.n_seeds} seed{'s' if found.n_seeds > 1 else ''}"
    words = f"{found.verdict} with {seeds}"
    if found.n_seeds < found.n_seeds_needed:
        words += f", for fewer than {found.n_seeds_needed} decide nothing"
    fell = "diverged " if found.diverged else ""
    return (
        f"{_TRANSFER}: {brief(found.learning_rate)}, the best at the shortest length, {fell}at "
        f"{found.n_seq:,} tokens against {' and '.join(rivals)}: {words}."
    )


def _rival(one: Neighbour, alone: bool) -> str:
    said = "which did not" if alone else "which diverged"
    if one.worse_nats is not None and one.p is not None:
        said = f"{one.worse_nats:+.4f} nats, p = {one.p:.2g}"
    return f"{brief(one.learning_rate)} ({said})"


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(f"{n:,}" for n in lengths)


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


def _monitor(line: Line) -> str:
    return "on" if line.is_beside else "off"


def _ratio(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _seeds(line: Line) -> str:
    lost = f", {line.n_diverged} diverged" if line.n_diverged else ""
    return f"{len(line.rows)}{lost}"
