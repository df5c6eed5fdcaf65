"""Length mismatch as a person reads it: the table, and what it comes to in words."""

from collections.abc import Sequence
from typing import Any

from bkray.report.cell_rows import NOT_APPLICABLE
from bkray.report.comparison import LOST
from bkray.report.mismatch import (
    ALPHA,
    GRADES,
    LEAST_CHANCES,
    LEAST_RECALL,
    RISKY_LOSS,
    RISKY_RECALL,
    SAFE_LOSS,
    SAFE_RECALL,
    SAFE_SHIFT,
    UNKNOWN,
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
    *("shift_variance", "shift_correlation", "shift_energy", "shift_energy_noise", "shift_p"),
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
        named[title] = [c and _known(c) for c in of_cells]
        named[f"{title}, 95% from"] = [c and c.low for c in of_cells]
        named[f"{title}, to"] = [c and c.high for c in of_cells]
    named["shift"] = [(c := one.criterion("states")) and _known(c) for one in found]
    named |= {title: [one.mean(name) for one in found] for title, name in _NUMBERS.items()}
    named["merged items"] = [one.mean("identical_items") for one in found]
    named["merged, not planted"] = [one.mean("identical_natural_items") for one in found]
    named |= {name: [one.mean(name) for one in found] for name in _FURTHER}
    named["seeds"] = [len(one.rows) for one in found]
    named["compared"] = [one.n_pairs if one.criteria else None for one in found]
    named["n_lost"] = [one.n_lost for one in found]
    return named


def sentences(found: Sequence[Cell]) -> list[str]:
    """Return what the table comes to, a sentence or two each."""
    n_seeds = max(len(one.rows) for one in found)
    said = [
        "Lost is against a model trained at the length that is evaluated, on as many tokens: of a "
        "retrieval probe's items the share of those it finds that noisy copies no longer find "
        "first, and of perplexity, in the second half of the rows, what the better of that model "
        "and of own windows of the train length has, on the same tokens. Half of the items are "
        "twins, planted: they differ in their second half alone. Merged are those that cannot be "
        "told apart any more, and behind + those of the same items without planting.",
        "Shift is how far the last hidden states are from those at the train length: their energy "
        "coefficient, 0 for none, 1 at most, behind +- what chance makes of half of the rows. "
        "Reach is how many tokens back a mixer looks on average, entropy how "
        "evenly, in nats.",
        f"Safe is up to {SAFE_LOSS:.0%} of perplexity and {SAFE_RECALL:.0%} of items lost and a "
        f"shift up to {SAFE_SHIFT:g}, half of the states' spread; risky is above "
        f"{RISKY_LOSS:.0%} or {RISKY_RECALL:.0%}; the rest is "
        "moderate; unknown is what not all seeds can tell, as where the model trained at that "
        f"length finds less than {LEAST_RECALL:.0%} of the items or {LEAST_CHANCES:g} times those "
        "by chance.",
    ]
    said += [words for grade in reversed(GRADES) if (words := _of_grade(found, grade))]
    said += [_idle(found), _unknown(found), _reference(found), _sure(found, n_seeds)]
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
    if one.n_lost:
        outcomes = dict.fromkeys(row.outcome for row in one.rows if row.outcome in LOST)
        return f"{one.n_lost} of {len(one.rows)} seeds ended {' or '.join(outcomes)}"
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


def _unknown(found: Sequence[Cell]) -> str:
    """Return the cells that cannot be judged, with the criteria that lack seeds."""
    parts = []
    for one in (one for one in found if one.verdict == UNKNOWN):
        lack = [c for c in one.criteria if c.grade == UNKNOWN]
        told = ", ".join(f"{c.name} of {len(c.values)} of {len(one.rows)} seeds" for c in lack)
        parts.append(f"{one.rows[0].strategy}, {_named(one)} ({told})")
    return f"Unknown - {'; '.join(parts)}." if parts else ""


def _reference(found: Sequence[Cell]) -> str:
    told = [f"{one.rows[0].strategy}, {_named(one)}" for one in found if one.is_reference]
    return (
        f"Own windows of the train length themselves are {'; '.join(told)}: their states are not "
        "judged, and perplexity only where they lose against retraining."
        if told
        else ""
    )


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
    merged, noise = one.mean("identical_items"), one.mean("shift_energy_noise")
    plain = one.mean("identical_natural_items")
    natural = "" if plain is None else f"+{plain:.0f}"
    shown = [_form(one.mean(name), form) for name, form in _FORMS.items()]
    first = [row.model, str(row.n_train), str(row.n_eval), row.strategy, _verdict(one)]
    return [
        *first,
        *shown[:2],
        _share(lost["perplexity"]),
        shown[2],
        _share(lost["retrieval"]),
        shown[3],
        "-" if merged is None or items is None else f"{merged:.0f}{natural}/{items:.0f}",
        _form(None if shift is None else _known(shift), ".3f")
        + (f" +-{noise:.3f}" if noise is not None else ""),
        *shown[4:],
        f"{one.n_pairs}/{len(one.rows)}" if one.criteria else str(len(one.rows)),
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
    said = f"{one.verdict}: {', '.join(made)}" if made else one.verdict
    return f"{said} (is the reference)" if one.is_reference else said


def _decided(one: Cell) -> str:
    return "" if one.verdict not in GRADES else "yes" if one.decided else "as it stands"


def _share(one: Criterion | None) -> str:
    return "-" if one is None or not one.values else f"{one.mean:+.1%}"


def _known(one: Criterion) -> float | None:
    return one.mean if one.values else None


def _form(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
