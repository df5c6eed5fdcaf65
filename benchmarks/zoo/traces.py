"""A trace: what a run said step by step, and whether and from where on it was diverging."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bkray.events import StepsDone

WINDOW = 16
"""Steps that a judge is shown at once."""

SPLIT_SEED = 20261121


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Losses and gradient norms of steps 1, 2, ...; ``onset`` is ``None`` for a healthy one."""

    name: str
    kind: str
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    onset: int | None
    unigram_nats: float
    recorded: bool = False
    masked: tuple[int, ...] = ()
    activations: tuple[float, ...] = ()
    """The largest at the end of each window; may be empty."""
    lrs: tuple[float, ...] = ()
    """At the end of each window; may be empty."""

    def windows(self) -> Iterator[StepsDone]:
        """Yield the trace as a running trial would tell it."""
        for i, start in enumerate(range(0, len(self.losses), WINDOW)):
            losses = self.losses[start : start + WINDOW]
            last = start + len(losses)
            yield StepsDone(
                step=last,
                tokens=last,
                loss_nats=losses,
                grad_norm=self.norms[start:last],
                lr=self.lrs[i] if self.lrs else 1e-3,
                window_seconds=1.0,
                masked=tuple(step for step in self.masked if start < step <= last),
                activations={"layers.0": self.activations[i]} if self.activations else {},
            )


def halves(traces: Iterable[Trace]) -> tuple[list[Trace], list[Trace]]:
    """Return the half to tune on and the half to report, each with half of every kind."""
    by_kind: dict[tuple[str, bool], list[Trace]] = {}
    for trace in sorted(traces, key=lambda trace: trace.name):
        by_kind.setdefault((trace.kind, trace.onset is None), []).append(trace)
    tuned: list[Trace] = []
    reported: list[Trace] = []
    for kind in sorted(by_kind):
        alike = by_kind[kind]
        # A generator for each kind: a new kind moves no trace of another to the other half.
        random.Random(f"{SPLIT_SEED} {kind}").shuffle(alike)
        # An odd one out goes to the half that is reported.
        tuned += alike[: len(alike) // 2]
        reported += alike[len(alike) // 2 :]
    return tuned, reported
