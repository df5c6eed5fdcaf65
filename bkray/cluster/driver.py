"""The driver's side of a sweep: hands out jobs, shows events to the views, tells the ledger."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from bkray.atomic import write_json
from bkray.cluster.carriers import TIME_IS_UP, Job, ask_to_stop, endings, forget_stop
from bkray.cluster.ledger import Ledger
from bkray.cluster.search import Proposal
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.events import Event, TrialEnded, TrialStarted
from bkray.sinks.sink import Sink, SweepView, Tee

Identify = Callable[[TrialConfig], tuple[str, str]]
"""``trial.identify``, or what stands in for it: config to trial id and data fingerprint."""


class Driver:
    """One per run of a sweep, in the process of the user. ``deadline`` is seconds since the epoch.

    It opens a sink of every view for each trial and closes it; the views stay open.
    """

    def __init__(
        self,
        ledger: Ledger,
        folder: Path,
        views: Sequence[SweepView],
        *,
        identify: Identify,
        deadline: float | None,
    ) -> None:
        self._ledger = ledger
        self._folder = folder
        self._views = views
        self._identify = identify
        self._deadline = deadline
        self._live: dict[int, _Live] = {}
        self.outcomes: Counter[str] = Counter()
        self.first_failure = ""
        """Reason of the first trial that failed or ran out of memory."""
        self.stopping = False
        self.out_of_time = False
        forget_stop(folder)

    @property
    def n_live(self) -> int:
        """Jobs handed out and not ended."""
        return len(self._live)

    def next_job(self) -> Job | None:
        """Return the next trial to run, its folder made; ``None`` when nothing is left to start.

        Raises:
            ConfigError, DataError: the space or the data cannot be had as configured.
        """
        if self.stopping or self.out_of_time:
            return None
        proposal = self._ledger.ask()
        if proposal is None:
            return None
        if self._deadline is not None and time.time() >= self._deadline:
            self.out_of_time = True  # the proposal stays open in the ledger
            return None
        job = self._job(proposal)
        sinks = [view.trial(job.trial_id) for view in self._views]
        self._live[job.number] = _Live(proposal, Tee(*sinks))
        return job

    def take(self, job: Job, event: Event) -> None:
        """Show an event to the views; the last one of a trial also goes to the ledger."""
        live = self._live[job.number]
        live.started = live.started or isinstance(event, TrialStarted)
        live.step = event.step
        live.sink(event)
        if isinstance(event, TrialEnded):
            self._end(job, live.proposal, event)

    def bury(self, job: Job, outcome: str, reason: str, own_sink: Sink) -> None:
        """End a trial whose worker died; ``own_sink`` writes its outcome as a further attempt."""
        live = self._live[job.number]
        for event in endings(job, outcome, reason, started=False, step=live.step):
            own_sink(event)
            if isinstance(event, TrialEnded) or not live.started:
                self.take(job, event)
        own_sink.close()

    def prune(self, job: Job, reason: str) -> None:
        """Ask one trial to end as pruned."""
        ask_to_stop(job.folder, "pruned", reason)

    def stop(self, reason: str) -> None:
        """Start no further trial and ask those that run to end as interrupted."""
        self.stopping = True
        ask_to_stop(self._folder, "interrupted", reason)

    def close(self) -> None:
        """Close the sinks of trials that never ended, and take back the request to stop."""
        for live in self._live.values():
            live.sink.close()
        self._live.clear()
        forget_stop(self._folder)

    def _job(self, proposal: Proposal) -> Job:
        trial_id, data_hash = self._identify(proposal.config)
        folder = self._folder / "trials" / trial_id
        folder.mkdir(parents=True, exist_ok=True)
        forget_stop(folder)
        write_json(
            folder / "proposal.json",
            {
                "number": proposal.number,
                "arm": proposal.arm,
                "overrides": proposal.overrides,
            },
        )
        return Job(
            number=proposal.number,
            trial_id=trial_id,
            data_hash=data_hash,
            sweep=self._ledger.search.sweep.name,
            overrides=proposal.overrides,
            folder=folder,
            sweep_folder=self._folder,
            deadline=self._deadline,
        )

    def _end(self, job: Job, proposal: Proposal, ended: TrialEnded) -> None:
        self._live.pop(job.number).sink.close()
        forget_stop(job.folder)
        self.outcomes[ended.outcome] += 1
        if ended.outcome in ("failed", "oom"):
            self.first_failure = self.first_failure or ended.reason
        self.out_of_time = self.out_of_time or ended.reason == TIME_IS_UP
        self._ledger.tell(proposal, self._values(ended), ended.outcome)

    def _values(self, ended: TrialEnded) -> list[float | None]:
        columns = [objective.column for objective in self._ledger.search.sweep.objectives]
        unknown = [column for column in columns if column not in ended.summary]
        if unknown and ended.outcome == "ok":
            raise ConfigError(
                f"objective {unknown[0]!r} is no column of a trial: "
                f"known are {', '.join(sorted(ended.summary))}"
            )
        return [ended.summary.get(column) for column in columns]


class _Live:
    """A trial that runs, as the driver sees it."""

    def __init__(self, proposal: Proposal, sink: Sink) -> None:
        self.proposal = proposal
        self.sink = sink
        self.started = False
        self.step = 0
