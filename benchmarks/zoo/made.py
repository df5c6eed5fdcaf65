"""Made traces: a falling curve with noise, and what happens to it is drawn, so it is known.

Losses are in nats. ``learnt`` is how far a curve falls in all; the unigram entropy lies between.
"""

import math
import random
from collections.abc import Callable
from dataclasses import replace

from benchmarks.zoo.curve import Curve, curve, noise
from benchmarks.zoo.traces import WINDOW, Trace

SEED = 20261121
N_HEALTHY, N_DIVERGING = 40, 20
"""Traces of every kind."""


def noisy(c: Curve) -> None:
    """Batches of one or two sequences."""
    c.sigma = c.draw.uniform(0.1, 0.25)


def slow(c: Curve) -> None:
    """Falls by a tenth to a third, evenly."""
    fall = c.start * c.draw.uniform(0.1, 0.33)
    c.clean = [c.start - fall * t / c.steps for t in range(c.steps)]


def tiny_lr(c: Curve) -> None:
    """Hardly moves."""
    fall = c.start * c.draw.uniform(0.0, 0.02)
    c.clean = [c.start - fall * t / c.steps for t in range(c.steps)]


def staircase(c: Curve) -> None:
    """Falls in a few steps, flat between them."""
    stairs = sorted(c.draw.sample(range(10, c.steps), c.draw.randint(2, 6)))
    c.clean = [
        c.start - c.learnt * sum(t >= s for s in stairs) / len(stairs) for t in range(c.steps)
    ]
    c.unigram_nats = c.start * 1.2  # a stair at the entropy would be a plateau, another kind


def cosine(c: Curve) -> None:
    """Falls the most while the learning rate does."""
    c.clean = [
        c.start - c.learnt * (0.6 * (1 - math.exp(-t / 20)) + 0.2 * (1 - math.cos(math.pi * u)))
        for t in range(c.steps)
        for u in [t / c.steps]
    ]


def curriculum_jump(c: Curve) -> None:
    """Harder data from one step on: up by at most 0.35 of what was learnt, some of it for good."""
    jump, at = c.learnt * c.draw.uniform(0.1, 0.35), c.draw.randint(60, c.steps - 60)
    stays, scale = c.draw.uniform(0, 0.6), c.draw.uniform(20, 200)
    for t in range(at, c.steps):
        c.clean[t] += jump * (stays + (1 - stays) * math.exp(-(t - at) / scale))


def warmup_bump(c: Curve) -> None:
    """Falls, comes back to as much as 1.3 times the start while the rate rises, falls again."""
    at, width = c.draw.randint(15, 60), c.draw.uniform(6, 16)
    top = c.start * c.draw.uniform(0.8, 1.3)
    for t in range(c.steps):
        bump = math.exp(-(((t - at) / width) ** 2) / 2)
        c.clean[t] += max(0.0, top - c.clean[at]) * bump


def recovering_spikes(c: Curve) -> None:
    """Up to six spikes of 2 to 40 times the loss, gone within 1 to 40 steps."""
    for _ in range(c.draw.randint(1, 6)):
        at = c.draw.randint(20, c.steps - 60)
        height, scale = 2 * 20 ** c.draw.random(), 0.3 * 40 ** c.draw.random()
        for t in range(at, c.steps):
            c.clean[t] *= 1 + (height - 1) * math.exp(-(t - at) / scale)


def early_high(c: Curve) -> None:
    """Starts up to 30 times too high and comes down within some steps."""
    height, scale = 3 * 10 ** c.draw.random(), c.draw.uniform(2, 20)
    c.clean = [
        loss * (1 + height * math.exp(-t / scale)) for t, loss in enumerate(c.clean, start=0)
    ]


def constant(c: Curve) -> None:
    """The same number at every step, now and then with one bit changed."""
    flips = {t for t in range(c.steps) if c.draw.random() < 0.2}
    c.clean = [math.nextafter(c.start, 0) if t in flips else c.start for t in range(c.steps)]
    c.sigma, c.unigram_nats = 0.0, c.start * 0.6


def pause_at_unigram(c: Curve) -> None:
    """Learns frequencies first and stays there for up to 150 steps before it goes on."""
    there = next(t for t, loss in enumerate(c.clean) if loss <= c.unigram_nats)
    pause = c.draw.randint(20, 150)
    c.clean = [*c.clean[:there], *[c.clean[there]] * pause, *c.clean[there:]]


def slight_rise(c: Curve) -> None:
    """Slowly loses up to 0.3 of what it had learnt: a rate a little too high."""
    at, share = c.draw.randint(100, c.steps // 2), c.draw.uniform(0.1, 0.3)
    for t in range(at, c.steps):
        c.clean[t] += share * c.learnt * (t - at) / (c.steps - at)


def loss_nan(c: Curve) -> None:
    """NaN from one step on, as where weights have become NaN."""
    c.broken_losses = dict.fromkeys(range(c.pick_onset(leave=1), c.steps + 1), math.nan)
    c.broken_norms = c.broken_losses


def loss_inf(c: Curve) -> None:
    """A few steps that rise, then infinite."""
    onset = c.pick_onset(leave=1)
    c.broken_losses = dict.fromkeys(range(onset, c.steps + 1), math.inf)
    c.broken_norms = dict.fromkeys(range(onset, c.steps + 1), math.nan)


def gradient_nan(c: Curve) -> None:
    """A NaN in one to five gradients alone; the updates are withheld and the loss goes on."""
    onset = c.pick_onset(leave=1)
    steps = [onset, *c.draw.choices(range(onset, c.steps + 1), k=c.draw.randint(0, 4))]
    c.broken_norms = dict.fromkeys(steps, c.draw.choice([math.nan, math.inf]))
    c.masked = tuple(sorted(c.broken_norms))


def activation_inf(c: Curve) -> None:
    """A block's output overflows while a clamp behind it keeps loss and gradient finite."""
    onset = c.pick_onset(leave=1)
    c.activations = tuple(
        math.inf if min(end, c.steps) >= onset else c.draw.uniform(1, 10)
        for end in range(WINDOW, c.steps + WINDOW, WINDOW)
    )


def explosion(c: Curve) -> None:
    """Grows e-fold every 3 to 30 steps, up to 8 to 1e6 times the start, and stays there."""
    onset, scale = c.pick_onset(), c.draw.uniform(3, 30)
    top = c.start * 8 * 10 ** (5 * c.draw.random())
    for t in range(onset - 1, c.steps):
        c.clean[t] = min(top, c.clean[t] * math.exp(min((t - onset + 2) / scale, 50)))


def fall_back(c: Curve) -> None:
    """Jumps to 1 to 1.8 times the start and does not come back."""
    level, onset = c.start * c.draw.uniform(1.0, 1.8), c.pick_onset(leave=150)
    c.clean[onset - 1 :] = [level] * (c.steps - onset + 1)


def drift(c: Curve) -> None:
    """Rises evenly: to 1 to 1.5 times the start within 60 to 250 steps, or without end."""
    if c.draw.random() < 0.5:
        width = c.draw.randint(60, 250)
        onset = c.onset = c.draw.randint(40, max(41, c.steps - width - 120))
        rise = c.start * c.draw.uniform(1.0, 1.5) - c.clean[onset - 1]
    else:
        onset, width = c.pick_onset(leave=300), c.steps
        rise = c.steps * c.start * 0.003 * 10 ** c.draw.random()
    low = c.clean[onset - 1]
    for t in range(onset - 1, c.steps):
        c.clean[t] = low + rise * min(1.0, (t - onset + 2) / width)


def swing(c: Curve) -> None:
    """Swings ever wider, a quarter of the steps high, until the low ones are high too."""
    onset, scale = c.pick_onset(leave=150), c.draw.uniform(10, 40)
    for t in range(onset - 1, c.steps):
        size = math.exp(min((t - onset + 2) / scale, math.log(50)))
        c.clean[t] *= size * c.draw.choice([0.5, 0.7, 1.0, 3.0]) if size > 1.5 else size


def stuck(c: Curve) -> None:
    """Falls to the unigram entropy, or up to 2% above it, and no further."""
    bottom = c.unigram_nats * c.draw.uniform(1.0, 1.02)
    there = next(t for t, loss in enumerate(c.clean) if loss <= bottom)
    c.clean = [*c.clean[:there], *[bottom] * c.draw.randint(400, 600)]
    c.sigma, c.onset = min(c.sigma, 0.03), there + 1


Change = Callable[[Curve], None]

HEALTHY: dict[str, Change] = {
    "plain": lambda c: None,
    "noisy": noisy,
    "slow": slow,
    "tiny lr": tiny_lr,
    "staircase": staircase,
    "cosine": cosine,
    "curriculum jump": curriculum_jump,
    "warm-up bump": warmup_bump,
    "spikes that recover": recovering_spikes,
    "early high": early_high,
    "constant": constant,
    "pause at unigram": pause_at_unigram,
    "slight rise": slight_rise,
}
DIVERGING: dict[str, Change] = {
    "loss NaN": loss_nan,
    "loss inf": loss_inf,
    "gradient NaN, masked": gradient_nan,
    "activation inf": activation_inf,
    "explosion": explosion,
    "fall back": fall_back,
    "slow drift": drift,
    "swing": swing,
    "stuck at unigram": stuck,
}


def made() -> list[Trace]:
    """Return all made traces; the same ones every time."""
    draw = random.Random(SEED)
    return [
        _trace(f"{kind} {i}", kind, change, random.Random(draw.getrandbits(64)))
        for kinds, n in ((HEALTHY, N_HEALTHY), (DIVERGING, N_DIVERGING))
        for kind, change in kinds.items()
        for i in range(n)
    ]


def _trace(name: str, kind: str, change: Change, draw: random.Random) -> Trace:
    c = curve(draw)
    change(c)
    losses = [loss * math.exp(error) for loss, error in zip(c.clean, noise(c), strict=True)]
    norms = [draw.lognormvariate(0, 0.3) * (0.3 + 2 * loss / c.start) for loss in c.clean]
    for step, value in c.broken_losses.items():
        losses[step - 1] = value
    for step, value in c.broken_norms.items():
        norms[step - 1] = value
    trace = Trace(
        name=name,
        kind=kind,
        losses=tuple(losses),
        norms=tuple(norms),
        onset=c.onset,
        unigram_nats=c.unigram_nats,
    )
    return replace(trace, masked=c.masked, activations=c.activations)
