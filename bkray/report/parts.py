"""Arms held against a reference, seed by seed. Pure functions of rows.

The reference of an arm ``a-b`` is the arm ``a``, if there is one, else the arm ``base``.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bkray.report.tables import Row
from bkray.stats import holm, sign_flip_p

BASE = "base"

_ALPHA = 0.05

Losses = Mapping[int, float]
"""Of an arm, by seed; infinite where a trial diverged."""


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the verdict on each arm: heading to values, one per arm; empty without a ``base``.

    An arm is better or worse by the sign-flip test over the seeds that both have an answer for,
    after Holm over all arms, at 5%; a trial that diverged lost against one that did not.
    """
    losses = _losses(rows)
    held = {arm: _reference(arm, losses) for arm in losses if arm != BASE}
    if BASE not in losses or not held:
        return {}
    pairs = {arm: _differences(losses[arm], losses[other]) for arm, other in held.items()}
    ps = {arm: sign_flip_p(found) if found else 1.0 for arm, found in pairs.items()}
    decided = dict(zip(ps, holm(list(ps.values()), _ALPHA), strict=True))
    params = {row["arm"]: row["n_params"] for row in rows}
    return {
        "arm": list(held),
        "against": list(held.values()),
        "parameters": [params[arm] for arm in held],
        "its parameters": [params[other] for other in held.values()],
        "loss over it (nats)": [_mean(losses[a], losses[b]) for a, b in held.items()],
        "p": list(ps.values()),
        "seeds": [len(found) for found in pairs.values()],
        "verdict": [_verdict(pairs[arm], decided[arm]) for arm in held],
    }


def said(rows: Sequence[Row]) -> str:
    """Return what to know beside the table; empty where there is none."""
    known = columns(rows)
    if not known:
        return ""
    n_needed = math.ceil(math.log2(2 * len(known["arm"]) / _ALPHA))
    words = (
        "Arms against their references: sign-flip tests over seeds with equal data, 5% after Holm "
        f"over {len(known['arm'])} arms"
    )
    fewest = min(known["seeds"])
    return f"{words}{f'; fewer than {n_needed} decide nothing' if fewest < n_needed else ''}."


def _losses(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        loss = math.inf if row["outcome"] == "diverged" else row["final_val_loss_nats"]
        if row["arm"] and row["outcome"] in ("ok", "diverged") and loss is not None:
            found.setdefault(row["arm"], {})[row["seed"]] = loss
    return found


def _reference(arm: str, known: Mapping[str, Losses]) -> str:
    whole = arm.rpartition("-")[0]
    return whole if whole in known else BASE


def _differences(ours: Losses, theirs: Losses) -> list[float]:
    """Return by how much we lose, seed by seed; who alone diverged, by more than all the rest."""
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    found = [0.0 if a == b else a - b for a, b in pairs]
    most = 1 + math.fsum(abs(one) for one in found if math.isfinite(one))
    return [one if math.isfinite(one) else math.copysign(most, one) for one in found]


def _mean(ours: Losses, theirs: Losses) -> float | None:
    both = ours.keys() & theirs.keys()
    found = fmean(ours[seed] - theirs[seed] for seed in both) if both else math.inf
    return found if math.isfinite(found) else None


def _verdict(differences: Sequence[float], is_decided: bool) -> str:
    if not is_decided:
        return "undecided"
    return "worse" if math.fsum(differences) > 0 else "better"
