"""A comparison of model families: losses over seeds with verdicts, and speeds by length."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from bkray.report.tables import Row
from bkray.sinks.parquet import read_rows
from bkray.stats import Comparison, Interval, bootstrap_interval, compare
from bkray.sweep import OURS, SEARCHED, TIMED

MARGIN_NATS = 0.02
"""Per token: families that differ by less are called a tie. It is 2% of the perplexity."""

LOST = ("diverged", "oom", "failed")
"""Outcomes without a loss, which are worse than any."""

_NAME = re.compile(r"speed/seq(\d+)/(train|eval|stream)_(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """``loss`` is over the ``n`` seeds that ended, ``None`` where one of them came to none, of
    which there are ``n_lost``. ``against_ours`` is ``None`` for our own family; in it "we" are
    ours and the rival is this one. ``rates`` are the learning rates that were searched, each with
    its loss, ``None`` where it did not end as ok."""

    name: str
    n: int
    n_lost: int
    loss: Interval | None
    n_params: int
    learning_rate: float
    rates: tuple[tuple[float, float | None], ...]
    against_ours: Comparison | None

    @property
    def rate_is_at_the_edge(self) -> bool:
        """Whether a rate outside of those searched might have been better."""
        tried = [rate for rate, _ in self.rates]
        return len(tried) > 1 and self.learning_rate in (min(tried), max(tried))


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One pass of a rival beside ours, in turn; ``kind`` is ``train``, ``eval`` or ``stream``.

    ``over_ours`` is by how much the rival takes longer, the median of so many ``rounds``: above 1
    ours is faster. Older sweeps have no rounds, least and most. Memory is what the pass takes
    beyond model and state.
    """

    rival: str
    n_seq: int
    kind: str
    over_ours: float
    least: float | None
    most: float | None
    rounds: float | None
    microseconds_per_token: float
    ours_microseconds_per_token: float
    memory_mib: float
    ours_memory_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Ours first, then rivals by rising loss; ``margin_nats`` is what a tie may differ by."""

    families: tuple[Family, ...]
    speeds: tuple[Speed, ...]
    margin_nats: float = MARGIN_NATS


def compared(sweep_dir: Path, rows: Sequence[Row]) -> Compared | None:
    """Return the comparison of a sweep, as far as it got; ``None`` where it has none."""
    if not any((row["arm"] or "").startswith((SEARCHED, TIMED)) for row in rows):
        return None
    configs = {row["trial_id"]: _config(sweep_dir, row) for row in rows}
    by_family: dict[str, list[Row]] = {}
    for row in contestants(rows):
        by_family.setdefault(row["arm"], []).append(row)
    losses = {name: losses_by_seed(own) for name, own in by_family.items()}
    ours = losses.get(OURS, {})
    rivals = {name: own for name, own in losses.items() if name != OURS}
    pairs = {
        name: [(ours[seed], own[seed]) for seed in sorted(ours.keys() & own.keys())]
        for name, own in rivals.items()
    }
    verdicts = compare(pairs, margin=MARGIN_NATS) if pairs else {}
    families = [
        _family(own, losses[name], verdicts.get(name), rows, configs)
        for name, own in by_family.items()
    ]
    families.sort(key=lambda one: (one.name != OURS, one.loss.mean if one.loss else math.inf))
    timed = [row for row in rows if (row["arm"] or "").startswith(TIMED)]
    return Compared(
        families=tuple(families),
        speeds=tuple(speed for row in timed for speed in _speeds(sweep_dir, row)),
    )


def contestants(rows: Iterable[Row]) -> list[Row]:
    """Return the trials that are compared, without those of the search and those to be timed."""
    return [row for row in rows if not (row["arm"] or "").startswith((SEARCHED, TIMED))]


def plain(known: Compared) -> dict[str, Any]:
    """Return the comparison as data for JSON; who won is named."""
    families = [asdict(one) for one in known.families]
    for one, data in zip(known.families, families, strict=True):
        data["winner"] = winner(one)
    return {**asdict(known), "families": families}


def winner(rival: Family) -> str | None:
    """Return who won, ours or the rival; ``None`` where nobody did."""
    seen = rival.against_ours
    if seen is None or seen.we_win is None:
        return None
    return OURS if seen.we_win else rival.name


def losses_by_seed(rows: Iterable[Row]) -> dict[int, float]:
    """Return by seed the last loss, infinite where there is none; of those that ended alone."""
    found = {}
    for row in rows:
        loss = row["final_val_loss_nats"]
        if row["outcome"] == "ok" or row["outcome"] in LOST:
            known = row["outcome"] == "ok" and loss is not None and math.isfinite(loss)
            found[row["seed"]] = loss if known else math.inf
    return found


def _family(
    own: Sequence[Row],
    losses: dict[int, float],
    verdict: Comparison | None,
    rows: Sequence[Row],
    configs: dict[str, dict[str, Any]],
) -> Family:
    name = own[0]["arm"]
    n_lost = sum(map(math.isinf, losses.values()))
    known = list(losses.values()) if losses and not n_lost else []
    searched = [row for row in rows if (row["arm"] or "").startswith(f"{SEARCHED}{name}-lr-")]
    return Family(
        name=name,
        n=len(losses),
        n_lost=n_lost,
        loss=bootstrap_interval(known) if known else None,
        n_params=own[0]["n_params"],
        learning_rate=configs[own[0]["trial_id"]]["optimizer.lr"],
        rates=tuple(
            (
                configs[row["trial_id"]]["optimizer.lr"],
                row["final_val_loss_nats"] if row["outcome"] == "ok" else None,
            )
            for row in searched
        ),
        against_ours=verdict,
    )


def _config(sweep_dir: Path, row: Row) -> dict[str, Any]:
    path = sweep_dir / "trials" / row["trial_id"] / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["config"]
    return config


def _speeds(sweep_dir: Path, row: Row) -> list[Speed]:
    told: dict[tuple[int, str], dict[str, float]] = {}
    events = read_rows(sweep_dir / "trials" / row["trial_id"])
    for event in events.filter(pc.field("kind") == "measured").to_pylist():
        if named := _NAME.fullmatch(event["name"]):
            told.setdefault((int(named[1]), named[2]), {})[named[3]] = event["value"]
    return [
        Speed(
            rival=row["arm"].removeprefix(TIMED),
            n_seq=n_seq,
            kind=kind,
            over_ours=seen["over_reference"],
            least=seen.get("over_reference_least"),
            most=seen.get("over_reference_most"),
            rounds=seen.get("rounds"),
            microseconds_per_token=seen["microseconds_per_token"],
            ours_microseconds_per_token=seen["reference_microseconds_per_token"],
            memory_mib=seen["memory_mib"],
            ours_memory_mib=seen["reference_memory_mib"],
        )
        for (n_seq, kind), seen in told.items()
    ]
