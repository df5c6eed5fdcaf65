"""The memory of a sweep: what to try next, what came out, in an Optuna study on disk.

Rivals come first and stay outside the study; then those that follow from them, or the sweep's
first points (and the grid) and the sampler. A *position* counts the proposals of the study from 0;
a proposal's ``number`` counts the rivals as well.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.trial import TrialState

from bkray.cluster.knobs import ask
from bkray.cluster.samplers import sampler
from bkray.cluster.search import Proposal, Search
from bkray.cluster.study import open_study
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.overrides import flatten
from bkray.sweep import Ended

_ANSWERED = ("ok", "diverged", "pruned", "oom", "failed")
"""Outcomes that are not tried again; an interrupted trial goes on."""

_OVERRIDES = "overrides"
"""User attribute of a study's row: the proposal. A row without it was never handed out."""
_TOLD = "told:"
"""User attributes of the study: what came out of the proposal of that number."""


class _Told(NamedTuple):
    """What came out of one configuration: raw values (``None`` where not finite) and outcome."""

    values: list[float | None]
    outcome: str


class Ledger:
    """Asks and tells. Opened again on the same folder it goes on where it stopped; without a
    folder it forgets.

    Every proposal is a pure function of the stored rows, the sweep seed and its position.
    Proposals that were out, or interrupted, when the process ended are handed out again first.
    """

    def __init__(self, folder: Path | None, search: Search) -> None:
        self.search = search
        self._storage, self._study = open_study(folder, search.sweep)
        self._rivals = search.rivals()
        self._points = search.points()
        self._n_searched = search.n_searched
        self._told = _read_told(self._study)
        self._rows: list[int] = []
        self._answers: dict[str, _Told] = {}
        self._running: dict[str, list[int]] = {}
        self._waiting: list[Proposal] = []
        self.n_reused = 0
        """Proposals that were answered by an equal one, without training."""
        self._recall()

    def ask(self) -> Proposal | None:
        """Return the next configuration to run, or ``None`` when nothing is left.

        Raises:
            ConfigError: the space proposes what no config allows.
        """
        if self._waiting:
            return self._waiting.pop(0)
        while len(self._rows) < self._n_searched:
            proposal = self._propose(len(self._rows))
            if self._take_in(proposal):
                return proposal
        while not self._running and (followers := self._followers()):
            self._waiting = [one for one in followers if self._take_in(one)]
            if self._waiting:
                return self._waiting.pop(0)
        return None

    def tell(
        self, proposal: Proposal, values: Sequence[float | None] | None, outcome: str
    ) -> None:
        """Store what came out of a proposal that ``ask`` returned.

        Args:
            values: one per objective, the mean over the seeds; what is missing or not finite
                reaches Optuna as a value worse than the worst finite one seen.
            outcome: one of ``events.OUTCOMES``; ``interrupted`` leaves the proposal open.
        """
        if outcome == "interrupted":
            return
        n_objectives = len(self.search.sweep.objectives)
        given = [None] * n_objectives if values is None else list(values)
        assert len(given) == n_objectives
        finite = [float(v) if v is not None and math.isfinite(v) else None for v in given]
        told = _Told(finite, outcome)
        key = _key(proposal.config)
        for number in self._running.pop(key):
            self._settle(number, told)
        if outcome in _ANSWERED:
            self._answers[key] = told

    def close(self) -> None:
        """Let go of ``study.db``."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _take_in(self, proposal: Proposal) -> bool:
        """Answer the proposal by an equal one, or note that it runs and return true."""
        key = _key(proposal.config)
        if key not in self._answers and key not in self._running:
            self._running[key] = [proposal.number]
            return True
        self.n_reused += 1
        if key in self._answers:
            self._settle(proposal.number, self._answers[key])
        else:
            self._running[key].append(proposal.number)
        return False

    def _followers(self) -> list[Proposal]:
        """Return the rivals that follow from those that ended, which are all there are."""
        ended = [
            Ended(
                name=one.arm,
                overrides=one.overrides,
                outcome=self._told[one.number].outcome,
                values=tuple(self._told[one.number].values),
            )
            for one in self._rivals
        ]
        followers = self.search.followers(ended)
        self._rivals += followers
        return followers

    def _propose(self, position: int) -> Proposal:
        search, study = self.search, self._study
        study.sampler = sampler(
            search.sampler, seed=search.seed, position=position, diverged=self._diverged()
        )
        point = self._points[position] if position < len(self._points) else {}
        if point and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial(point)
        row = study.ask()
        try:
            answer = ask(search.space, row, pinned=search.pinned, point=point)
            overrides = search.base | point | answer.returned | answer.chosen | search.pinned
            proposal = search.propose(len(self._rivals) + position, overrides)
        except ConfigError:
            study.tell(row, state=TrialState.FAIL)
            raise
        row.set_user_attr(_OVERRIDES, proposal.overrides)
        self._rows.append(row.number)
        return proposal

    def _settle(self, number: int, told: _Told) -> None:
        """Write down what came out, then tell Optuna; ``_recall`` mends a death in between."""
        self._study.set_user_attr(f"{_TOLD}{number}", told._asdict())
        self._told[number] = told
        if number >= len(self._rivals):
            self._tell_optuna(self._rows[number - len(self._rivals)], told)

    def _tell_optuna(self, row: int, told: _Told) -> None:
        values = self._values_for_optuna(told)
        if values is not None:
            self._study.tell(row, values)
        else:
            pruned = told.outcome == "pruned"
            self._study.tell(row, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def _values_for_optuna(self, told: _Told) -> list[float] | None:
        """Return finite values, or ``None`` where the sampler should learn nothing."""
        if told.outcome in ("oom", "failed") or (told.outcome == "pruned" and None in told.values):
            return None
        known = [None] * len(told.values) if told.outcome == "diverged" else told.values
        values = [
            self._worse_than_seen(i) if value is None else value for i, value in enumerate(known)
        ]
        finite = [value for value in values if value is not None]
        return finite if len(finite) == len(values) else None

    def _diverged(self) -> dict[int, bool]:
        """Return which rows of the study diverged, of those that could tell."""
        n_rivals = len(self._rivals)
        return {
            self._rows[number - n_rivals]: told.outcome == "diverged"
            for number, told in self._told.items()
            if number >= n_rivals and told.outcome in ("ok", "pruned", "diverged")
        }

    def _worse_than_seen(self, i: int) -> float | None:
        """Return a value of objective ``i`` worse than every finite one, by their spread."""
        seen = [told.values[i] for told in self._told.values() if told.outcome == "ok"]
        finite = [value for value in seen if value is not None]
        if not finite:
            return None
        spread = max(finite) - min(finite) or abs(finite[0]) or 1.0
        minimize = self.search.sweep.objectives[i].direction == "minimize"
        return max(finite) + spread if minimize else min(finite) - spread

    def _recall(self) -> None:
        """Read back what was proposed and told; hand out again what was still running."""
        for rival in self._rivals:
            self._remember(rival)
        while not self._running and (followers := self._followers()):
            for follower in followers:
                self._remember(follower)
        for row in self._study.get_trials(deepcopy=False):
            if _OVERRIDES in row.user_attrs:
                number = len(self._rivals) + len(self._rows)
                self._rows.append(row.number)
                if number in self._told and not row.state.is_finished():
                    self._tell_optuna(row.number, self._told[number])
                self._remember(self.search.propose(number, row.user_attrs[_OVERRIDES]))
            elif row.state == TrialState.RUNNING:
                # the process ended between asking and writing down: the position is asked again
                self._study.tell(row.number, state=TrialState.FAIL)

    def _remember(self, proposal: Proposal) -> None:
        key, told = _key(proposal.config), self._told.get(proposal.number)
        if told is None:
            self._running.setdefault(key, []).append(proposal.number)
            if len(self._running[key]) == 1:
                self._waiting.append(proposal)
        elif told.outcome in _ANSWERED:
            self._answers[key] = told


def _read_told(study: optuna.Study) -> dict[int, _Told]:
    """Return what was written down, by the number of the proposal."""
    return {
        int(name.removeprefix(_TOLD)): _Told(**told)
        for name, told in study.user_attrs.items()
        if name.startswith(_TOLD)
    }


def _key(config: TrialConfig) -> str:
    return json.dumps(flatten(config), sort_keys=True)
