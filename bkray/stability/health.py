"""What the judge remembers of a trial, and how one more loss changes it. Pure and plain.

A *level* is the median of the last ``LEVEL_STEPS`` losses. Two sums look for what lasts, after
Page 1954, Biometrika 41, 100-115 (CUSUM): each grows by the evidence of a step, shrinks by an
allowance, and never falls below 0, so that evidence of long ago does not weigh.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

SPIKE_RATIO = 2.0
"""A loss more than twice the one before is a spike, as the family's guides count them."""

LEVEL_STEPS = 32
"""Losses that the judge looks back on."""

FEWEST_STEPS = 16
"""Losses that a robust spike must be measured against."""

MAD_TO_SIGMA = 1.4826
"""Standard deviation over median absolute deviation of a normal distribution."""

FLOOR = 0.01
"""Noise is taken for at least this share of the level: a constant loss has no deviation."""

EXPLODED_RATIO = 2.0
"""Times its first loss; a trial that stays above it has left the range of an untrained model."""

LOST_SHARE = 0.5
"""Share of what was learnt; a trial that stays without it drifts."""

MOST_DOUBLINGS, MOST_LOST = 2.0, 1.5
"""Evidence of one step at most, so that a single spike, however high, ends no trial."""

NOISE_SIGMAS = 3.0
"""Noise alone is no loss of what was learnt: it would have to be so many standard deviations."""

TREND_STEPS = 3
"""Losses whose median is compared with that of as many before."""

RECOVERING_RATIO = 0.9
"""Losses that fall by so much in ``TREND_STEPS`` are a spike that recovers."""

RECOVERY = 0.5
"""Evidence that such a step takes away, however high the loss still is."""

UNIGRAM_BAND = 0.05
"""A level within this share of the unigram entropy is at the unigram entropy."""

UNIGRAM_FALL = 0.01
"""A level that has fallen by this share of the unigram entropy is moving, not stuck."""


@dataclass(frozen=True, slots=True)
class Health:
    """Plain numbers, so it fits into a checkpoint: ``Health(**asdict(health)) == health``."""

    last_loss_nats: float | None = None
    spike_count: int = 0
    """Losses more than twice the one before."""
    first_loss_nats: float | None = None
    losses: tuple[float, ...] = ()
    """The last ``LEVEL_STEPS`` at most."""
    best_level_nats: float | None = None
    explosion: float = 0.0
    """Sum of doublings above ``EXPLODED_RATIO`` times the first loss."""
    explosion_steps: int = 0
    """Steps since that sum was 0."""
    drift: float = 0.0
    """Sum of shares lost, of all that was learnt, beyond ``LOST_SHARE``."""
    drift_steps: int = 0
    """Steps since that sum was 0."""
    stuck_level_nats: float | None = None
    """Level at the unigram entropy that has not been left or much improved on since."""
    stuck_steps: int = 0
    """Steps since the level was set."""
    collapsed_steps: int = 0
    """Steps in which the latents of a generator said nothing, up to the last one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", tuple(self.losses))

    @property
    def level_nats(self) -> float | None:
        """Median of the last ``LEVEL_STEPS`` losses; ``None`` before there are so many."""
        return median(self.losses) if len(self.losses) == LEVEL_STEPS else None


def median(values: Sequence[float]) -> float:
    """Return the median of at least one number; of two middle ones their mean."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def noise_nats(losses: Sequence[float], centre: float) -> float:
    """Return the robust standard deviation of ``losses`` around ``centre``."""
    deviation = median([abs(loss - centre) for loss in losses])
    return max(MAD_TO_SIGMA * deviation, FLOOR * abs(centre))


def after(health: Health, loss: float, unigram_nats: float | None) -> Health:
    """Return the memory after one more loss, which is finite."""
    first = loss if health.first_loss_nats is None else health.first_loss_nats
    losses = (*health.losses, loss)[-LEVEL_STEPS:]
    best, level, lost = health.best_level_nats, None, 0.0
    if len(losses) == LEVEL_STEPS:
        level = median(losses)
        best = level if best is None else min(best, level)
        if health.drift or loss > best + LOST_SHARE * (first - best):  # else it stays at 0
            lost = _lost(loss, losses, level, first=first, best=best)
    doublings = _doublings(loss, max(first, unigram_nats or 0.0))
    if max(lost, doublings) > 0 and _is_falling(losses):
        lost, doublings = min(lost, -RECOVERY), min(doublings, -RECOVERY)
    drift, explosion = max(0.0, health.drift + lost), max(0.0, health.explosion + doublings)
    stuck_level, stuck_steps = _stuck(health, level, unigram_nats)
    doubled = health.last_loss_nats is not None and is_doubled(loss, health.last_loss_nats)
    return Health(
        last_loss_nats=loss,
        spike_count=health.spike_count + doubled,
        first_loss_nats=first,
        losses=losses,
        best_level_nats=best,
        explosion=explosion,
        explosion_steps=health.explosion_steps + 1 if explosion else 0,
        drift=drift,
        drift_steps=health.drift_steps + 1 if drift else 0,
        stuck_level_nats=stuck_level,
        stuck_steps=stuck_steps,
        collapsed_steps=health.collapsed_steps,
    )


def forgetful(health: Health, *, settled: bool) -> Health:
    """Return the memory after a step of a loss that is still growing a term: it holds no level
    that a later loss could be measured against, and once ``settled`` no losses either."""
    losses = () if settled else health.losses
    return replace(health, losses=losses, best_level_nats=None, drift=0.0, drift_steps=0)


def is_doubled(loss: float, before: float) -> bool:
    """Return whether a loss spikes by the guides' rule; of a negative one there is no double."""
    return before >= 0 and loss > SPIKE_RATIO * before


def _is_falling(losses: Sequence[float]) -> bool:
    """Return whether the last losses are well below those before: a spike that recovers."""
    now, before = losses[-TREND_STEPS:], losses[-2 * TREND_STEPS : -TREND_STEPS]
    return len(before) == TREND_STEPS and median(now) < RECOVERING_RATIO * median(before)


def _doublings(loss: float, untrained: float) -> float:
    """Return how many doublings a loss lies above ``EXPLODED_RATIO`` times an untrained one."""
    if untrained <= 0:  # no cross-entropy, and no ratio to it either
        return 0.0
    ratio = loss / (EXPLODED_RATIO * untrained)
    if ratio <= 2**-MOST_DOUBLINGS:
        return -MOST_DOUBLINGS
    return min(math.log2(ratio), MOST_DOUBLINGS)


def _lost(
    loss: float, losses: Sequence[float], level: float, *, first: float, best: float
) -> float:
    """Return by how much of what was learnt a loss lies beyond ``LOST_SHARE``, from -1 to 1.5."""
    learnt = max(first - best, 0.0)
    scale = max(learnt, NOISE_SIGMAS * noise_nats(losses, level) / LOST_SHARE)
    return max(-1.0, min((loss - best) / scale - LOST_SHARE, MOST_LOST)) if scale else 0.0


def _stuck(
    health: Health, level: float | None, unigram_nats: float | None
) -> tuple[float | None, int]:
    """Return since how many steps which level at the unigram entropy has not fallen."""
    if level is None or unigram_nats is None:
        return None, 0
    if abs(level - unigram_nats) > UNIGRAM_BAND * unigram_nats:
        return None, 0
    stuck = health.stuck_level_nats
    if stuck is None or level < stuck - UNIGRAM_FALL * unigram_nats:
        return level, 0
    return stuck, health.stuck_steps + 1
