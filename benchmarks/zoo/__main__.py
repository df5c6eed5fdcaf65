"""The judge beside its rivals on all traces: see ``benchmarks.zoo``."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.zoo.made import made
from benchmarks.zoo.recorded import record, recorded
from benchmarks.zoo.rules import RULES, Stop
from benchmarks.zoo.traces import Trace, halves
from bkray.stability import Health, judge

Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Score:
    """What a rule made of some traces. A stop before the onset is early, and no catch."""

    n_diverging: int
    n_early: int
    delays: tuple[int, ...]
    n_healthy: int
    n_stopped: int

    def cells(self) -> tuple[str, str, str, str]:
        """Return caught, early, median delay and stopped, as a table says them."""
        return (
            share(len(self.delays), self.n_diverging),
            str(self.n_early) if self.n_diverging else "-",
            f"{median(self.delays):g}" if self.delays else "-",
            share(self.n_stopped, self.n_healthy),
        )


def score(stops: Mapping[str, Stop | None], traces: Sequence[Trace]) -> Score:
    """Compare stops, by name of the trace, with the truth; a delay counts to the window's end."""
    delays, n_early, n_stopped = [], 0, 0
    for trace in traces:
        stop = stops[trace.name]
        if stop is None:
            continue
        if trace.onset is None:
            n_stopped += 1
        elif stop.step < trace.onset:
            n_early += 1
        else:
            delays.append(stop.said_at - trace.onset)
    n_healthy = sum(trace.onset is None for trace in traces)
    return Score(len(traces) - n_healthy, n_early, tuple(delays), n_healthy, n_stopped)


def share(n_hit: int, n: int) -> str:
    """Return a count, its share and Wilson's 95% interval (1927, JASA 22, 209-212)."""
    if n == 0:
        return "-"
    z, p = Z_95, n_hit / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return f"{n_hit}/{n} = {100 * p:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def print_table(title: str, rows: Mapping[str, Score]) -> None:
    """Print scores as a Markdown table."""
    print(f"\n{title}\n")
    print("| | diverging: caught | early | median delay, steps | healthy: stopped |")
    print("| --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row.cells())} |")


def print_half(title: str, traces: Sequence[Trace]) -> None:
    """Print every rule on all of a half and on its recorded runs, and the judge by kind."""
    stops = {name: {trace.name: rule(trace) for trace in traces} for name, rule in RULES.items()}
    real = [trace for trace in traces if trace.recorded]
    print_table(title, {name: score(said, traces) for name, said in stops.items()})
    print_table(
        f"{title}, recorded runs alone", {name: score(said, real) for name, said in stops.items()}
    )
    kinds: dict[str, list[Trace]] = {}
    for trace in sorted(traces, key=lambda t: (t.recorded, t.onset is not None, t.kind)):
        kinds.setdefault(trace.kind, []).append(trace)
    print_table(
        f"{title}, the judge by kind",
        {kind: score(stops["judge"], alike) for kind, alike in kinds.items()},
    )
    wrong = [t.name for t in traces if (stops["judge"][t.name] is None) != (t.onset is None)]
    print("\nMisjudged:", ", ".join(wrong) or "none")
    back = [
        trace.name
        for trace in real
        if stops["judge"][trace.name] and median(trace.losses[-32:]) < 0.95 * trace.unigram_nats
    ]
    print(f"Stopped, but would have ended 5% below the unigram entropy: {', '.join(back) or '-'}")


def print_cost(traces: Sequence[Trace]) -> None:
    """Print the processor time that the judge takes for a window of 16 steps."""
    windows = [window for trace in traces if trace.onset is None for window in trace.windows()]
    health, start = Health(), time.process_time()
    for window in windows:
        health, _, _ = judge(health, window, unigram_nats=3.0)
    milliseconds = 1e3 * (time.process_time() - start) / len(windows)
    print(f"\nThe judge takes {milliseconds:.3f} ms of processor time for a window of 16 steps")


def main(asked: Sequence[str]) -> None:
    """Record, or print the tables; ``tune`` keeps the half to report out of sight."""
    if asked == ["record"]:
        record()
        return
    traces = [*made(), *recorded()]
    real = [trace for trace in traces if trace.recorded]
    n_real = sum(trace.onset is not None for trace in real)
    print(f"{len(traces)} traces, {len(real)} of them recorded, {n_real} of those diverging")
    tuned, reported = halves(traces)
    print_half("The half tuned on", tuned)
    if asked != ["tune"]:
        print_half("The half reported", reported)
    print_cost(real)


if __name__ == "__main__":
    main(sys.argv[1:])
