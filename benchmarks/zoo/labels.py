"""The truth about a recorded run, from all of it: what a judge, who sees a part, must guess.

The rules were written down before the judge's constants were chosen, but for the second half
sentence of rule 1, and look at the whole trace:

1. *not finite*: a loss or a gradient norm is no finite number. Onset: the first such step; or,
   where losses of more than twice that of step 1 lead up to it without a break, the first of
   those; or that of rule 2 if it is earlier still.
2. *blown up*: of some 32 steps in a row three quarters have more than twice the loss of step 1,
   whether or not the schedule brings the loss back later. Onset: the first of the 32 that has.
3. *lost*: the median of the last 32 losses is nearer to the loss of step 1 than to the lowest
   median of 32 steps in a row, and above that by at least 5% of the loss of step 1. Onset: the
   last step before which a median of 32 was still within a quarter of the way.
4. *stuck*: over its last 256 steps all medians of 32 lie within 5% of the unigram entropy, and the
   last is at most 1% of it below the first. Onset: the step from which on they lie there.

Everything else is healthy, also a run that is much worse than another.
"""

import math
from collections.abc import Sequence
from statistics import median

STRETCH = 32
STUCK_STEPS = 256


def label(
    losses: Sequence[float], norms: Sequence[float], unigram_nats: float
) -> tuple[str, int | None]:
    """Return what became of a run, and the step from which on, ``None`` for a healthy one."""
    broken = [
        step
        for step, pair in enumerate(zip(losses, norms, strict=True), start=1)
        if not all(map(math.isfinite, pair))
    ]
    finite = losses[: broken[0] - 1] if broken else losses
    blown = _blown_up(finite)
    if broken:
        fine = [step for step, loss in enumerate(finite, start=1) if loss <= 2 * losses[0]]
        leads_up = fine[-1] + 1 if fine else 1
        return "not finite", leads_up if blown is None else min(leads_up, blown)
    if blown is not None:
        return "blown up", blown
    if (lost := _lost(losses)) is not None:
        return "lost", lost
    if (stuck := _stuck(losses, unigram_nats)) is not None:
        return "stuck", stuck
    return "healthy", None


def _blown_up(losses: Sequence[float]) -> int | None:
    high = [loss > 2 * losses[0] for loss in losses]
    for start in range(len(losses) - STRETCH + 1):
        if sum(high[start : start + STRETCH]) >= 0.75 * STRETCH:
            return high.index(True, start) + 1
    return None


def _medians(losses: Sequence[float]) -> list[float]:
    """Return the median of every ``STRETCH`` losses in a row; item i ends with loss i + 31."""
    return [median(losses[i : i + STRETCH]) for i in range(len(losses) - STRETCH + 1)]


def _lost(losses: Sequence[float]) -> int | None:
    levels = _medians(losses)
    start, best, end = losses[0], min(levels), levels[-1]
    learnt = max(start - best, 0.0)
    if end <= best + max(learnt / 2, 0.05 * start):
        return None
    near = best + max(learnt / 4, 0.025 * start)
    return max(i for i, level in enumerate(levels) if level <= near) + STRETCH


def _stuck(losses: Sequence[float], unigram_nats: float) -> int | None:
    levels = _medians(losses)
    there = [abs(level - unigram_nats) <= 0.05 * unigram_nats for level in levels]
    last = levels[-(STUCK_STEPS - STRETCH + 1) :]
    if len(losses) < STUCK_STEPS or not all(there[-len(last) :]):
        return None
    if last[-1] < last[0] - 0.01 * unigram_nats:
        return None
    left = [i for i, is_there in enumerate(there) if not is_there]
    return left[-1] + 2 if left else 1
