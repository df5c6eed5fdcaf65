"""What the ledger is told of a configuration, once all of its seeds have ended."""

import math
from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from bkray.cluster.ledger import Ledger
from bkray.cluster.search import Proposal
from bkray.errors import ConfigError
from bkray.events import TrialEnded, outcome_over_seeds


class Answers:
    """Collects how the seeds of each proposal end, in any order."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._columns = [objective.column for objective in ledger.search.sweep.objectives]
        self._ended: defaultdict[int, list[TrialEnded]] = defaultdict(list)

    def take(self, proposal: Proposal, ended: TrialEnded) -> None:
        """Take in how one seed ended; the last one is told to the ledger with the others.

        Raises:
            ConfigError: a trial that ended well lacks an objective.
        """
        self._check_reported(ended)
        seeds = self._ended[proposal.number]
        seeds.append(ended)
        if len(seeds) < proposal.n_seeds:
            return
        del self._ended[proposal.number]
        outcomes = [seed.outcome for seed in seeds]
        if "interrupted" in outcomes:  # that seed is still to be run, whatever the others came to
            return
        outcome = outcome_over_seeds(outcomes)
        # a mean of whole and of shortened trials would mean nothing
        counts = outcome == "ok" or len(seeds) == 1
        values = [
            _mean(seed.summary.get(column) for seed in seeds) if counts else None
            for column in self._columns
        ]
        self._ledger.tell(proposal, values, outcome)

    def _check_reported(self, ended: TrialEnded) -> None:
        for column in self._columns:
            if ended.outcome == "ok" and column not in ended.summary:
                raise ConfigError(
                    f"objective {column!r} is no column of a trial: "
                    f"known are {', '.join(sorted(ended.summary))}"
                )


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean over the seeds, ``None`` where a seed has no finite number."""
    found = list(values)
    numbers = [value for value in found if value is not None and math.isfinite(value)]
    return fmean(numbers) if len(numbers) == len(found) else None
