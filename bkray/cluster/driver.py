"""The driver's side of a sweep: hands out jobs, shows events to the views, tells the ledger.

A proposal of the ledger is a configuration, and one job for each of its seeds. All of them are
run, whatever comes of the first, so that a sweep does the same however its trials overlap; the
ledger is told once, when the last one has ended. A trial that ended before, in another process,
is answered from its folder.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bkray.atomic import write_json
from bkray.cluster.answers import Answers
from bkray.cluster.budget import GPU_HOURS_ARE_UP, TIME_IS_UP, Budget
from bkray.cluster.carriers import Job, ask_to_stop, endings, forget_stop
from bkray.cluster.ledger import Ledger
from bkray.cluster.preemption import PREEMPTED
from bkray.cluster.pruning import Judge
from bkray.cluster.retries import BROKEN, broke, tries_again
from bkray.cluster.search import Proposal
from bkray.cluster.store import end_of, last_end, stored_trials
from bkray.config import TrialConfig
from bkray.events import (
    EvalDone,
    Event,
    Rewound,
    TrialEnded,
    TrialStarted,
)
from bkray.overrides import build
from bkray.sinks.sink import Null, Sink, SweepView, Tee

Identify = Callable[[TrialConfig], tuple[str, str]]
"""``trial.identify``, or what stands in for it: config to trial id and data fingerprint."""

LOST = ("diverged", *BROKEN)
"""Outcomes that count as the worst wherever trials are compared."""
_ALIKE = 3
"""Trials which, if they are the first to end and fail with one error, end the sweep."""


class Driver:
    """One per run of a sweep, in the process of the user.

    It opens a sink of every view for each attempt and closes it; the views stay open.

    Args:
        token: names this driver in the sweep's folder; a job of another one ends.
        workers: of one trial.
        judge: says which trials to prune.
    """

    def __init__(
        self,
        ledger: Ledger,
        folder: Path,
        views: Sequence[SweepView],
        *,
        identify: Identify,
        budget: Budget,
        token: str = "",
        workers: int = 1,
        judge: Judge | None = None,
    ) -> None:
        self._ledger = ledger
        self._folder = folder
        self._views = views
        self._identify = identify
        self._budget = budget
        self._token = token
        self._workers = workers
        self._judge = judge or Judge()
        self._seeds = ledger.search.seeds
        self._waiting: deque[tuple[Proposal, int]] = deque()
        self._live: dict[int, _Live] = {}
        self._answers = Answers(ledger)
        self._first: list[tuple[str, str]] = []
        self.outcomes: Counter[str] = Counter()
        self.first_failure = ""
        """Reason of the first trial that failed or ran out of memory."""
        self.always_fails = ""
        """Traceback of the error that the first trials had in common, and that ended the sweep."""
        self.stopping = False
        self.over_budget = ""
        """Which budget is spent, with something left to do."""
        forget_stop(folder)
        self._stored = {trial.trial_id: trial for trial in stored_trials(folder)}
        for trial in self._stored.values():
            self._judge.remember(trial.number, trial.curve)
            if trial.ended is not None:
                self._count(trial.ended)
                self._first.append((trial.ended.outcome, trial.ended.reason))
                if trial.ended.outcome in LOST:
                    self._judge.lose(trial.number)

    def next_job(self) -> Job | None:
        """Return the next trial to run, its folder made; ``None`` when nothing is left to start.

        Raises:
            ConfigError, DataError: the space or the data cannot be had as configured.
        """
        while (turn := self._next_turn()) is not None:
            live = self._live_of(*turn)
            stored = self._stored.get(live.job.trial_id)
            if stored is None or stored.ended is None:
                return self._hand_out(live)
            self._answers.take(live.proposal, stored.ended)
        return None

    def placed(self, job: Job, gpus: float) -> None:
        """The trial holds its place, and so many GPUs."""
        self._budget.begin(job.number, gpus)

    def look_at_budget(self) -> str:
        """Return which budget is spent and let trials under way end; a deadline they see."""
        reached = self._budget.reached()
        if reached == GPU_HOURS_ARE_UP:
            ask_to_stop(self._folder, "interrupted", reached)
        return reached

    @property
    def out_of_patience(self) -> bool:
        """Whether trials that still run although a budget is spent are to be ended by force."""
        return self._budget.patience_left() <= 0

    def take(self, job: Job, event: Event) -> None:
        """Show an event to the views; the last one of a trial also goes to the ledger."""
        live = self._live[job.number]
        live.started = live.started or isinstance(event, TrialStarted)
        live.step = event.step
        if isinstance(event, TrialEnded):
            self._end(live, event)
            return
        live.sink(event)
        if isinstance(event, Rewound):
            self._judge.rewind(job.number, event.to_step * live.tokens_per_step)
        elif isinstance(event, EvalDone) and event.split == "val":
            tokens = event.step * live.tokens_per_step
            if self._judge.ends(job.number, tokens, event.loss_nats):
                self._prune(live, event.step)

    def bury(self, job: Job, outcome: str, reason: str, own_sink: Sink) -> None:
        """End a trial whose worker died; ``own_sink`` writes its outcome as a further attempt,
        unless the worker has written one."""
        live = self._live[job.number]
        last = last_end(job.folder) if live.started else None
        if last is not None and (last.reason == PREEMPTED or end_of(job.folder) is not None):
            self.take(job, last)  # it died after its end
            return
        if self.out_of_patience:  # it was ended for that
            outcome, reason = "interrupted", self._budget.reached()
        for event in endings(job, outcome, reason, started=False, step=live.step or None):
            own_sink(event)
            if isinstance(event, TrialEnded) or not live.started:
                self.take(job, event)
        own_sink.close()

    def stop(self, reason: str) -> None:
        """Start no further trial and ask those that run to end as interrupted."""
        self.stopping = True
        ask_to_stop(self._folder, "interrupted", reason)

    def close(self) -> None:
        """Close the sinks of trials that never ended, and take back the request to stop."""
        for live in self._live.values():
            self.over_budget = self.over_budget or self._budget.reached()
            live.sink.close()
        self._live.clear()
        forget_stop(self._folder)

    def _next_turn(self) -> tuple[Proposal, int] | None:
        """Return which seed of which proposal comes next."""
        if self.stopping or self.over_budget:
            return None
        if not self._waiting and (asked := self._ledger.ask()) is not None:
            self._waiting.extend((asked, turn) for turn in range(asked.n_seeds))
        if not self._waiting:
            return None
        if reached := self.look_at_budget():  # the proposal stays open in the ledger
            self.over_budget = reached
            return None
        return self._waiting.popleft()

    def _live_of(self, proposal: Proposal, turn: int) -> "_Live":
        overrides = proposal.seeded(turn)
        config = build(overrides)
        trial_id, data_hash = self._identify(config)
        job = Job(
            number=proposal.number * self._seeds + turn,
            trial_id=trial_id,
            data_hash=data_hash,
            sweep=self._ledger.search.sweep.name,
            overrides=overrides,
            folder=self._folder / "trials" / trial_id,
            sweep_folder=self._folder,
            deadline=self._budget.deadline,
            driver=self._token,
        )
        return _Live(job, proposal, turn, config)

    def _hand_out(self, live: "_Live") -> Job:
        job, proposal = live.job, live.proposal
        job.folder.mkdir(parents=True, exist_ok=True)
        forget_stop(job.folder)
        write_json(
            job.folder / "proposal.json",
            {
                "number": job.number,
                "proposal": proposal.number,
                "seed": live.config.seed,
                "arm": proposal.arm,
                "overrides": job.overrides,
            },
        )
        if (tokens := self._judge.condemned_at(job.number)) is not None:
            # it broke off between the verdict and its end
            self._prune(live, round(tokens / live.tokens_per_step))
        if (before := self._live.pop(job.number, None)) is not None:
            before.sink.close()
        live.sink = Tee(*(view.trial(job.trial_id) for view in self._views))
        self._live[job.number] = live
        return job

    def _prune(self, live: "_Live", step: int) -> None:
        if step < live.config.train.steps:
            reason = f"{self._judge.name} at step {step}"
            ask_to_stop(live.job.folder, "pruned", reason, from_step=step)

    def _end(self, live: "_Live", ended: TrialEnded) -> None:
        forget_stop(live.job.folder)
        self._budget.end(live.job.number)
        if ended.reason in (TIME_IS_UP, GPU_HOURS_ARE_UP):
            self.over_budget = ended.reason
        remedy = tries_again(live.job.folder, ended, live.config.train, self._workers)
        if remedy and not self.stopping and not self._budget.reached():
            live.sink(broke(ended, remedy))
            self._waiting.appendleft((live.proposal, live.turn))
            return
        live.sink(ended)
        self._live.pop(live.job.number).sink.close()
        self._count(ended)
        if remedy:  # whoever resumes the sweep tries again
            self.over_budget = self.over_budget or self._budget.reached()
            ended = replace(ended, outcome="interrupted")
        else:
            self._look_at_the_first(live.job, ended)
        if ended.outcome in LOST:
            self._judge.lose(live.job.number)
        self._answers.take(live.proposal, ended)

    def _count(self, ended: TrialEnded) -> None:
        self.outcomes[ended.outcome] += 1
        if ended.outcome in BROKEN:
            self.first_failure = self.first_failure or ended.reason

    def _look_at_the_first(self, job: Job, ended: TrialEnded) -> None:
        """End the sweep if its first trials all failed, and all alike."""
        if len(self._first) >= _ALIKE:  # who resumes in spite of them has mended something
            return
        self._first.append((ended.outcome, ended.reason))
        if self._first == [("failed", ended.reason)] * _ALIKE:
            traceback = job.folder / "error.txt"
            self.always_fails = traceback.read_text() if traceback.exists() else ended.reason
            self.stop(f"the first {_ALIKE} trials failed alike")


class _Live:
    """A trial that is handed out, as the driver sees it."""

    def __init__(self, job: Job, proposal: Proposal, turn: int, config: TrialConfig) -> None:
        self.job = job
        self.proposal = proposal
        self.turn = turn
        self.config = config
        self.sink: Sink = Null()
        self.started = False
        self.step = 0

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.batch_size * self.config.n_seq
