"""A comparison as a person reads it: verdicts, speeds by length, and what they rest on."""

from typing import Any

from bkray.report.comparison import Compared, Family, Speed, winner
from bkray.report.ranking import brief
from bkray.stats import Interval
from bkray.stats.paired import MOST_FURTHER
from bkray.sweep import OURS

VERDICTS = "Families"
SPEEDS = f"Speed: time of a rival over that of {OURS}"
_KINDS = {"train": "training step", "eval": "evaluation", "stream": "streaming"}

FURTHER = (
    "Further seeds would decide 4 times in 5 if the seen mean were the true one. They want a "
    "fresh test of them alone, a sweep whose seed begins behind these: adding them and testing "
    "again would find false winners more often than 5%. Seeds too few for any winner are only "
    "added to."
)
"""What to do about those that are undecided."""

Columns = dict[str, list[Any]]
"""Heading to values, one per line."""


def verdicts(known: Compared) -> Columns:
    """Return the table of verdicts, a line for each family."""
    of = known.families
    tested = [one.against_ours for one in of]
    return {
        "family": [one.name for one in of],
        "seeds": [one.n for one in of],
        "lost": [one.n_lost for one in of],
        "loss (nats)": [one.loss and one.loss.mean for one in of],
        "95% interval": [_interval(one.loss) for one in of],
        f"over {OURS}": [one and one.difference and one.difference.mean for one in tested],
        "interval of it": [_interval(one.difference) if one else None for one in tested],
        "p": [one and one.p for one in tested],
        "after Holm": [one and one.p_holm for one in tested],
        "verdict": [_verdict(one) for one in of],
        "further seeds": [_further(one) for one in of],
        "learning rate": [one.learning_rate for one in of],
        "parameters": [one.n_params for one in of],
    }


def speeds(known: Compared) -> Columns:
    """Return the table of speeds, a line for each rival and length."""
    at: dict[tuple[str, int], dict[str, Speed]] = {}
    for one in known.speeds:
        at.setdefault((one.rival, one.n_seq), {})[one.kind] = one
    columns: Columns = {
        "rival": [rival for rival, _ in at],
        "tokens": [n_seq for _, n_seq in at],
    }
    for kind, name in _KINDS.items():
        columns[name] = [_ratio(seen.get(kind)) for seen in at.values()]
    for kind in _KINDS:
        timed = [seen.get(kind) for seen in at.values()]
        own = [one.microseconds_per_token if one else None for one in timed]
        ours = [one.ours_microseconds_per_token if one else None for one in timed]
        columns |= {f"{kind} tokens/s": list(map(_rate, own))}
        columns |= {f"{kind} {OURS}": list(map(_rate, ours))}
    trained = [seen.get("train") for seen in at.values()]
    columns["train MiB"] = [one and round(one.memory_mib) for one in trained]
    columns[f"MiB {OURS}"] = [one and round(one.ours_memory_mib) for one in trained]
    return columns


def tables(known: Compared) -> dict[str, Columns]:
    """Return the tables that have a line, by their titles."""
    found = {VERDICTS: verdicts(known), SPEEDS: speeds(known)}
    return {title: columns for title, columns in found.items() if any(columns.values())}


def cells(columns: Columns) -> list[list[str]]:
    """Return the lines of a table, its headings first."""
    lines = zip(*columns.values(), strict=True)
    return [list(columns), *([brief(value) for value in line] for line in lines)]


def sentences(known: Compared) -> list[str]:
    """Return what the verdicts and speeds rest on."""
    said = []
    if len(known.families) > 1:
        said.append(
            f"Losses of the last step, paired by seed; over {OURS}: above 0 {OURS} is better. "
            "Exact sign-flip test, Holm over the rivals at 5%. A tie is a difference of less than "
            f"{known.margin_nats:g} nats, which takes evidence of its own; intervals are for "
            "display. A seed that came to no loss is worse than any and is counted, as lost."
        )
    if any(map(_further, known.families)):
        said.append(FURTHER)
    edges = [one for one in known.families if one.rate_is_at_the_edge]
    if edges:
        named = ", ".join(f"{one.name} {one.learning_rate:.2g}" for one in edges)
        said.append(
            f"Best learning rate at the edge of the search: {named}; others may do better."
        )
    if known.speeds:
        said.append(
            f"Speed above 1: {OURS} is faster; median (least..most) of alternating rounds behind "
            "a warm pass, or one pass alone where it takes over 20 s. One row of random tokens, "
            "untrained models, in turn in one process; a stream is read behind a past as long as "
            "the row, which attention looks back over. Memory is what a training step takes "
            "beyond the model."
        )
    return said


def _verdict(one: Family) -> str | None:
    if one.against_ours is None:
        return None
    won = winner(one)
    return f"{won} wins" if won is not None else one.against_ours.verdict


def _further(one: Family) -> str | None:
    seen = one.against_ours
    if seen is None or seen.verdict != "undecided":
        return None
    more = " or more" if seen.further_seeds == MOST_FURTHER else ""
    return f"{seen.further_seeds}{more}"


def _ratio(seen: Speed | None) -> str | None:
    if seen is None:
        return None
    spread = ""
    if seen.rounds == 1:
        spread = " (one pass)"
    elif seen.least is not None and seen.most is not None:
        spread = f" ({seen.least:.3g}..{seen.most:.3g})"
    return f"{seen.over_ours:.3g}{spread}"


def _rate(microseconds: float | None) -> int | None:
    return None if microseconds is None else round(1e6 / microseconds)


def _interval(seen: Interval | None) -> str | None:
    if seen is None or seen.low is None:
        return None
    return f"{brief(seen.low)} to {brief(seen.high)}"
