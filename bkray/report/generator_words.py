"""Training length of a generator as a person reads it: the table, and what it comes to."""

from collections.abc import Sequence
from typing import Any

from bkray.report.comparison_words import FURTHER
from bkray.report.generator import ACCURACY, MARGIN, QUOTED, VARIANCE, Answer, Line, answers
from bkray.report.ranking import brief
from bkray.stats import Interval
from bkray.stats.paired import MOST_FURTHER

TITLE = "Training length"
_NUMBERS = {
    "pooled": "pooled_explained_variance",
    "bound": "pooling_bound",
    "KL (nats)": "kl_nats",
}
_CEILINGS = {
    "accuracy, pooled": "downstream_accuracy_pooled",
    "accuracy, real": "downstream_accuracy_real",
    "sample variance": "sample_variance_ratio",
}
_FURTHER = {
    "train s": "train_seconds",
    "train MiB": "training_peak_mib",
    "estimate": "training_estimate_mib",
    "generate MiB": "generation_peak_mib",
    "its estimate": "generation_estimate_mib",
    "s/row": "generation_seconds_per_row",
}

Columns = dict[str, list[Any]]
"""Heading to values, one per line."""


def columns(lines: Sequence[Line]) -> Columns:
    """Return the table, a line per generator and training length; empty without any."""
    if not lines:
        return {}
    seen = {name: [line.seen(name) for line in lines] for name in (VARIANCE, ACCURACY)}
    named: Columns = {"generator": [line.variant or "-" for line in lines]}
    named["length"] = [line.length for line in lines]
    named["explained"] = [one and one.mean for one in seen[VARIANCE]]
    named["95% interval"] = list(map(_interval, seen[VARIANCE]))
    named["quoted"] = [_range(line.length) for line in lines]
    named["it"] = [line.quoted for line in lines]
    named |= {title: [line.mean(name) for line in lines] for title, name in _NUMBERS.items()}
    named["accuracy"] = [one and one.mean for one in seen[ACCURACY]]
    named["interval of it"] = list(map(_interval, seen[ACCURACY]))
    named |= {title: [line.mean(name) for line in lines] for title, name in _CEILINGS.items()}
    named["against longest"] = [line.verdict for line in lines]
    named["p, Holm"] = [line.against_longest and line.against_longest.p_holm for line in lines]
    named["further seeds"] = [
        (line.against_longest and line.against_longest.further_seeds) or None for line in lines
    ]
    named |= {title: [line.mean(name) for line in lines] for title, name in _FURTHER.items()}
    named["parameters"] = [line.rows[0].n_params for line in lines]
    named["finished"] = [len(line.finished) for line in lines]
    named["lost"] = [line.n_lost for line in lines]
    if len({line.variant for line in lines}) == 1:
        del named["generator"]
    return {name: values for name, values in named.items() if any(v is not None for v in values)}


def cells(lines: Sequence[Line]) -> list[list[str]]:
    """Return the lines of the table as text, its headings first."""
    known = columns(lines)
    return [list(known), *([brief(v) for v in line] for line in zip(*known.values(), strict=True))]


def sentences(lines: Sequence[Line]) -> list[str]:
    """Return what the table comes to, a sentence or two each."""
    if not lines:
        return []
    said = [
        "Explained is the share of the validation rows' variance that comes back at full length, "
        "pooled what averaging down to the training length and interpolating back would leave "
        "without any generator, bound the most that any decoder could make of the averages. "
        "Accuracy is of a classifier that has seen generated rows alone, on real test rows; "
        "pooled is the same classifier after as many real rows, averaged down and interpolated, "
        "real after real ones as they are: from real to pooled the length loses, from pooled on "
        "the generator. Sample variance is that of generated rows over that of averaged real "
        "ones, 1 where they spread alike. Means are over trials that finished. All seeds have "
        "the same rows and the same split, so intervals hold for these rows, and cover training "
        "alone.",
        *map(_answer, answers(lines)),
        _quotes(lines),
    ]
    if any(line.against_longest and line.against_longest.further_seeds for line in lines):
        said.append(FURTHER)
    lost = [line for line in lines if line.n_lost]
    if lost:
        at = ", ".join(f"{line.n_lost} of {len(line.rows)} at {line.length}" for line in lost)
        said.append(f"Trials that collapsed, diverged or failed, and lose against any: {at}.")
    late = [line for line in lines if line.n_collapsed]
    if late:
        at = ", ".join(f"{line.n_collapsed} of {len(line.rows)} at {line.length}" for line in late)
        said.append(
            f"Trials that finished with a collapsed posterior, and count as they are: {at}."
        )
    return [words for words in said if words]


def _answer(one: Answer) -> str:
    of = f" of {one.variant}" if one.variant else ""
    if one.shortest < one.longest:
        words = (
            f"The shortest training length{of} without a significant loss of downstream accuracy "
            f"against {one.longest} is {one.shortest}"
        )
    else:
        words = (
            f"No training length{of} shorter than {one.longest} is shown to be without a loss of "
            "downstream accuracy"
        )
    if one.undecided:
        *first, last = map(str, one.undecided)
        some = f"{', '.join(first)} and {last}" if first else last
        seeds = f"{one.further_seeds} further seeds"
        if one.further_seeds >= MOST_FURTHER:
            seeds = f"{MOST_FURTHER} further seeds or more"
        words += f"; undecided at {some}: it would take {seeds}"
    return f"{words}. By sign-flip tests over seeds, 5% after Holm; a tie is within {MARGIN:g}."


def _quotes(lines: Sequence[Line]) -> str:
    """Return how many of the shares usually quoted hold."""
    told = [line for line in lines if line.quoted != "unknown"]
    if not told:
        return ""
    words = [
        f"{line.length} ({_range(line.length)}): {line.mean(VARIANCE):.1%}, {_how(line)}"
        for line in told
    ]
    n_held = sum(line.quoted == "holds" for line in told)
    return f"Of the shares usually quoted {n_held} of {len(told)} hold: {'; '.join(words)}."


def _how(line: Line) -> str:
    return line.quoted if line.quoted == "holds" else f"quoted {line.quoted}"


def _range(length: int) -> str | None:
    if length not in QUOTED:
        return None
    low, high = QUOTED[length]
    return f"{low:.0%} to {high:.0%}"


def _interval(seen: Interval | None) -> str | None:
    if seen is None or seen.low is None:
        return None
    return f"{brief(seen.low)} to {brief(seen.high)}"
