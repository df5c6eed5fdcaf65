"""The lengths that a trial trains at, one after another; most trials have one."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from bkray.config import TrialConfig

MONITORED = "-monitored"
"""Ends the name of an arm of a ladder that has one without the monitor beside it."""

DISTANCES = (64, 512, 4096)
"""Tokens: how much what lies further back is worth, is told of lengths of four times as many."""


class Rung(NamedTuple):
    """Steps ``first_step`` to ``last_step``, each of ``batch_size`` rows of ``n_seq`` tokens."""

    n_seq: int
    batch_size: int
    rows: int
    """Rows that are computed at once, in training and evaluation."""
    first_step: int
    last_step: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.n_seq


class Reach(NamedTuple):
    """How far a ladder is stable; ``None`` where no length is, or none diverged."""

    stable: int | None
    diverged: int | None


def reach(tried: Iterable[tuple[int, str]]) -> Reach:
    """Return the longest stable length and the shortest that diverged, of lengths and outcomes.

    A length diverged if all that was tried at it did, at whatever learning rate, and is stable if
    anything ended as ok. The longest stable one lies below the shortest that diverged: what ends
    as ok beyond a gap is no answer to how far one may go.
    """
    at: dict[int, set[str]] = defaultdict(set)
    for n_seq, outcome in tried:
        at[n_seq].add(outcome)
    diverged = min((n for n, seen in at.items() if seen == {"diverged"}), default=None)
    below = [n for n, seen in at.items() if "ok" in seen and (diverged is None or n < diverged)]
    return Reach(max(below, default=None), diverged)


def rungs(config: TrialConfig) -> tuple[Rung, ...]:
    """Return the rungs of a trial in their order; each gets an equal share of the steps."""
    lengths, steps = config.ladder.rungs or (config.n_seq,), config.train.steps
    return tuple(
        Rung(
            n_seq,
            *rows_at(config, n_seq),
            first_step=steps * i // len(lengths) + 1,
            last_step=steps * (i + 1) // len(lengths),
        )
        for i, n_seq in enumerate(lengths)
    )


def rung_at(of_trial: tuple[Rung, ...], step: int) -> Rung:
    """Return the rung that ``step``, counted from 1, belongs to; the last one behind the end."""
    return next((rung for rung in of_trial if step <= rung.last_step), of_trial[-1])


def rows_at(config: TrialConfig, n_seq: int) -> tuple[int, int]:
    """Return the rows of a step at a length, and how many of them are computed at once.

    ``train.batch_size`` is that of ``model.n_seq``. As many tokens as that holds at once, other
    lengths hold at most: ``train.batch_size / train.accumulation`` rows, or chunks of them. Steps
    are of equally many tokens where whole rows can be, else of as many as can be within 1%.
    """
    plan, longest = config.train, config.n_seq
    wanted = plan.batch_size * (1 if config.ladder.batch == "rows" else longest / n_seq)
    fewest = plan.batch_size // plan.accumulation  # what a team of processes can share
    most = fewest * min(longest, plan.chunk or longest) // min(n_seq, plan.chunk or n_seq)
    passes = {n: max(1, round(wanted / n)) for n in range(fewest, most + 1, fewest)}
    nearest = min(abs(n * times - wanted) for n, times in passes.items())
    allowed = max(nearest, wanted / 100) if nearest else 0
    rows = max(n for n, times in passes.items() if abs(n * times - wanted) <= allowed)
    return rows * passes[rows], rows
