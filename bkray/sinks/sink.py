"""Where events go: one sink per trial, one view per sweep.

A sink gets the events of one trial in order. A view watches a whole sweep from the driver and
hands out a sink for each of its trials.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from bkray.events import Event, TrialStarted


class Sink(Protocol):
    """Takes the events of one trial; ``close`` may be called twice, and before ``TrialEnded``."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


class SweepView(Protocol):
    """Watches a sweep; ``trial`` gives the sink of one attempt, ``close`` ends the view."""

    def trial(self, trial_id: str) -> Sink: ...

    def close(self) -> None: ...


class Null:
    """Forgets every event."""

    def __call__(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


class InMemory:
    """Keeps every event in ``events``."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass


class Tee:
    """Hands each event to every sink; what a sink raises comes out after all of them had it."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def __call__(self, event: Event) -> None:
        _run_all(partial(sink, event) for sink in self._sinks)

    def close(self) -> None:
        _run_all(sink.close for sink in self._sinks)


def _run_all(calls: Iterable[Callable[[], None]]) -> None:
    errors = []
    for call in calls:
        try:
            call()
        except Exception as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("several sinks failed", errors)


def trial_label(started: TrialStarted, swept: Sequence[str]) -> str:
    """Return what tells a trial from its neighbours: an arm's name, else its swept knobs."""
    knobs = {name: started.config[name] for name in swept if name in started.config}
    return f"{started.arm or knob_words(knobs) or started.sweep} seed={started.seed}"


def knob_words(knobs: Mapping[str, Any]) -> str:
    """Return ``threshold=0.95 lambda=0.01``: of each config path the last part, without the words
    that all of them start with, and of each number four digits."""
    shorts = _short_names(list(knobs))
    pairs = zip(shorts, knobs.values(), strict=True)
    return " ".join(f"{short}={_brief(value)}" for short, value in pairs)


def _short_names(paths: list[str]) -> list[str]:
    lasts = [path.rpartition(".")[2].split("_") for path in paths]
    while len(lasts) > 1 and all(len(words) > 1 for words in lasts):
        if len({words[0] for words in lasts}) > 1:
            break
        lasts = [words[1:] for words in lasts]
    shorts = ["_".join(words) for words in lasts]
    return shorts if len(set(shorts)) == len(shorts) else paths


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
