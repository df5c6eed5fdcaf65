"""Length mismatch as a person reads it: the table, and what it comes to in words."""

from collections.abc import Sequence
from typing import Any

from bkray.report.cell_rows import NOT_APPLICABLE
from bkray.report.mismatch import (
    ALPHA,
    GRADES,
    RISKY_LOSS,
    RISKY_RECALL,
    SAFE_LOSS,
    SAFE_RECALL,
    Cell,
    Criterion,
    seeds_needed,
)

TITLE = "Length mismatch"
_NUMBERS = {
    "ppl": "ppl",
    "ppl, 2nd half": "late_ppl",
    "recall": "recall_long",
    "recall, short": "recall_short",
    "MRR": "mrr_long",
    "MRR, short": "mrr_short",
    "reach": "reach_tokens",
    "entropy": "entropy_nats",
    "us/token": "microseconds_per_token",
    "MiB": "memory_mib",
}
_FURTHER = (
    *("loss_nats", "late_loss_nats", "own_late_loss_nats", "items", "shift_mean"),
    *("shift_variance", "shift_correlation", "shift_energy", "shift_energy_null", "shift_p"),
)
_LOST = {"perplexity": "ppl lost", "retrieval": "items lost"}

Cells = list[list[str]]


def cells(found: Sequence[Cell]) -> Cells:
    """Return the lines of the table, its headings first."""
    heads = ["model", "train", "at", "strategy", "verdict", "ppl", "2nd half", "lost"]
    heads += ["recall", "lost", "MRR", "merged", "shift", "reach", "entropy", "us/token", "MiB"]
    return [[*heads, "seeds"], *map(_line, found)]


def columns(found: Sequence[Cell]) -> dict[str, list[Any]]:
    """Return the same table as numbers, and more of them: name to values, one per line."""
    first = [one.rows[0] for one in found]
    named: dict[str, list[Any]] = {
        "model": [row.model for row in first],
        "train": [row.n_train for row in first],
        "at": [row.n_eval for row in first],
        "strategy": [row.strategy for row in first],
        "verdict": [one.verdict for one in found],
        "decided": [_decided(one) for one in found],
    }
    for name, title in _LOST.items():
        of_cells = [one.criterion(name) for one in found]
        named[title] = [c and c.mean for c in of_cells]
        named[f"{title}, 95% from"] = [c and c.low for c in of_cells]
        named[f"{title}, to"] = [c and c.high for c in of_cells]
    named["shift over other text"] = [(c := one.criterion("states")) and c.mean for one in found]
    named |= {title: [one.mean(name) for one in found] for title, name in _NUMBERS.items()}
    named["merged items"] = [one.mean("identical_items") for one in found]
    named |= {name: [one.mean(name) for one in found] for name in _FURTHER}
    named["seeds"] = [len(one.rows) for one in found]
    named["n_diverged"] = [one.n_diverged for one in found]
    return named


def sentences(found: Sequence[Cell]) -> list[str]:
    """Return what the table comes to, a sentence or two each."""
    n_seeds = max(len(one.rows) for one in found)
    said = [
        "Lost is against a model trained at the length that is evaluated, on as many tokens: of a "
        "retrieval probe's items those that noisy copies no longer find first, and of perplexity, "
        "in the second half of the rows, what the better of that model and of own windows of the "
        "train length has, on the same tokens. Half of the items are twins that differ in their "
        "second half alone; merged are those that cannot be told apart any more.",
        "Shift is how far the last hidden states are from those at the train length, 1 being as "
        "far as other text. Reach is how many tokens back a mixer looks on average, entropy how "
        "evenly, in nats.",
        f"Safe is up to {SAFE_LOSS:.0%} of perplexity and {SAFE_RECALL:.0%} of items lost and a "
        f"shift up to 1; risky is above {RISKY_LOSS:.0%} or {RISKY_RECALL:.0%}; the rest is "
        "moderate.",
    ]
    said += [words for grade in reversed(GRADES) if (words := _of_grade(found, grade))]
    said += [_idle(found), _sure(found, n_seeds)]
    return [words for words in said if words]


def _of_grade(found: Sequence[Cell], grade: str) -> str:
    """Return the cells of a grade by strategy, with the numbers that made it unless it is safe."""
    told = [one for one in found if one.verdict == grade]
    by_strategy: dict[str, list[str]] = {}
    for one in told:
        why = f" ({_why(one)})" if grade != "safe" else ""
        by_strategy.setdefault(one.rows[0].strategy, []).append(f"{_named(one)}{why}")
    parts = [f"{strategy}: {', '.join(names)}" for strategy, names in by_strategy.items()]
    return f"{grade.capitalize()} - {'; '.join(parts)}." if told else ""


def _why(one: Cell) -> str:
    """Return the numbers that made a verdict."""
    if one.n_diverged:
        return f"{one.n_diverged} of {len(one.rows)} seeds diverged"
    return ", ".join(_number(c) for c in one.criteria if c.grade == one.verdict)


def _number(one: Criterion) -> str:
    match one.name:
        case "perplexity":
            return f"perplexity {one.mean:+.1%}"
        case "retrieval":
            return f"items {-one.mean:+.1%}"
        case _:
            return f"shift {one.mean:.2f}"


def _idle(found: Sequence[Cell]) -> str:
    told = [_named(one) for one in found if one.verdict == NOT_APPLICABLE]
    why = "the table of positions ends with the train length"
    return f"Not applicable - extrapolate: {', '.join(told)}: {why}." if told else ""


def _sure(found: Sequence[Cell], n_seeds: int) -> str:
    graded = [one for one in found if one.verdict in GRADES]
    n_decided = sum(one.decided for one in graded)
    words = (
        f"Decided by the sign-flip test over seeds at {ALPHA:.0%}: {n_decided} of {len(graded)}"
    )
    words += " verdicts; the others are as they stand"
    if n_seeds < seeds_needed():
        seeds = f"{n_seeds} seed{'s' if n_seeds > 1 else ''}"
        words += (
            f": of {seeds}, where safe takes {seeds_needed(1)} and the others {seeds_needed()}"
        )
    return f"{words}."


def _named(one: Cell) -> str:
    row = one.rows[0]
    return f"{row.model} {row.n_train} at {row.n_eval}"


def _line(one: Cell) -> list[str]:
    row, lost = one.rows[0], {name: one.criterion(name) for name in _LOST}
    shift, items = one.criterion("states"), one.mean("items")
    merged = one.mean("identical_items")
    shown = [_form(one.mean(name), form) for name, form in _FORMS.items()]
    first = [row.model, str(row.n_train), str(row.n_eval), row.strategy, _verdict(one)]
    return [
        *first,
        *shown[:2],
        _share(lost["perplexity"]),
        shown[2],
        _share(lost["retrieval"]),
        shown[3],
        "-" if merged is None or items is None else f"{merged:.0f}/{items:.0f}",
        _form(None if shift is None else shift.mean, ".2f"),
        *shown[4:],
        str(len(one.rows)),
    ]


_FORMS = {
    "ppl": ".3f",
    "late_ppl": ".3f",
    "recall_long": ".3f",
    "mrr_long": ".3f",
    "reach_tokens": ".1f",
    "entropy_nats": ".2f",
    "microseconds_per_token": ".1f",
    "memory_mib": ".1f",
}


def _verdict(one: Cell) -> str:
    """Return the verdict and what made it: ``risky: perplexity``."""
    made = [c.name for c in one.criteria if c.grade == one.verdict != GRADES[0]]
    return f"{one.verdict}: {', '.join(made)}" if made else one.verdict


def _decided(one: Cell) -> str:
    return "" if one.verdict not in GRADES else "yes" if one.decided else "as it stands"


def _share(one: Criterion | None) -> str:
    return "-" if one is None else f"{one.mean:+.1%}"


def _form(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
