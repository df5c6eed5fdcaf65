"""Arms held against a reference, seed by seed. Pure functions of rows.

The reference of an arm ``a-b`` is the arm ``a``, if there is one, else the arm ``base``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bkray.report.comparison import MARGIN_NATS, losses_by_seed
from bkray.report.comparison_words import FURTHER
from bkray.report.tables import Row
from bkray.stats import Comparison, compare, least_pairs
from bkray.stats.paired import ALPHA

BASE = "base"


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the verdict on each arm: heading to values, one per arm; empty without a ``base``.

    An arm is better, worse or a tie as ``compare`` says of the seeds that both have an answer for,
    all arms being one family; a trial without a loss lost against one that has one.
    """
    by_arm: dict[str, list[Row]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"] or "", []).append(row)
    losses = {arm: known for arm, own in by_arm.items() if arm and (known := losses_by_seed(own))}
    held = {arm: _reference(arm, losses) for arm in losses if arm != BASE}
    if BASE not in losses or not held:
        return {}
    pairs = {
        arm: [(losses[arm][s], losses[other][s]) for s in losses[arm] if s in losses[other]]
        for arm, other in held.items()
    }
    found = list(compare(pairs, margin=MARGIN_NATS).values())
    params = {row["arm"]: row["n_params"] for row in rows}
    return {
        "arm": list(held),
        "against": list(held.values()),
        "parameters": [params[arm] for arm in held],
        "its parameters": [params[other] for other in held.values()],
        "loss over it (nats)": [one.difference and -one.difference.mean for one in found],
        "p": [one.p for one in found],
        "seeds": [one.n for one in found],
        "verdict": list(map(_verdict, found)),
        "further seeds": [one.further_seeds or None for one in found],
    }


def said(rows: Sequence[Row]) -> str:
    """Return what to know beside the table; empty where there is none."""
    known = columns(rows)
    if not known:
        return ""
    n_needed = least_pairs(len(known["arm"]), ALPHA)
    words = (
        "Arms against their references: sign-flip tests over seeds with equal data, 5% after Holm "
        f"over {len(known['arm'])} arms; a tie is within {MARGIN_NATS:g} nats"
    )
    few = f"; fewer than {n_needed} decide nothing" if min(known["seeds"]) < n_needed else ""
    return f"{words}{few}.{f' {FURTHER}' if any(known['further seeds']) else ''}"


def _reference(arm: str, known: Mapping[str, Any]) -> str:
    whole = arm.rpartition("-")[0]
    return whole if whole in known else BASE


def _verdict(found: Comparison) -> str:
    return found.verdict if found.we_win is None else ("better" if found.we_win else "worse")
