"""A falling loss curve in the making. Losses are in nats."""

import math
import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Curve:
    """A healthy run in the making: its losses without noise, and how noisy they will be."""

    draw: random.Random
    clean: list[float]
    start: float
    end: float
    unigram_nats: float
    sigma: float
    """Of the noise, relative to the loss."""
    memory: float
    """Correlation of the noise from step to step."""
    heavy: bool
    onset: int | None = None
    masked: tuple[int, ...] = ()
    activations: tuple[float, ...] = ()
    broken_losses: dict[int, float] = field(default_factory=dict)
    """Steps whose loss is replaced, noise and all."""
    broken_norms: dict[int, float] = field(default_factory=dict)

    @property
    def learnt(self) -> float:
        return self.start - self.end

    @property
    def steps(self) -> int:
        return len(self.clean)

    def pick_onset(self, *, leave: int = 100) -> int:
        """Draw the step from which on the run diverges, ``leave`` steps before the end at most."""
        self.onset = self.draw.randint(20, self.steps - leave)
        return self.onset


def curve(draw: random.Random) -> Curve:
    """Return a power law between a start near ln(V) and an end that depends on the text."""
    steps = draw.choice([400, 600, 800])
    start = draw.uniform(4.0, 10.0)
    end = start * draw.uniform(0.2, 0.6)
    scale, power = draw.uniform(10, 80), draw.uniform(0.7, 1.5)
    return Curve(
        draw=draw,
        clean=[end + (start - end) * (1 + t / scale) ** -power for t in range(steps)],
        start=start,
        end=end,
        unigram_nats=end + (start - end) * draw.uniform(0.3, 0.6),
        sigma=0.005 * 10 ** draw.random(),
        memory=draw.choice([0.0, 0.0, 0.6]),
        heavy=draw.random() < 0.3,
    )


def noise(c: Curve) -> list[float]:
    """Return Gaussian noise, or Student's with 4 degrees of freedom, correlated by ``memory``."""
    errors, last = [], 0.0
    for _ in c.clean:
        fresh = c.draw.gauss(0, 1)
        if c.heavy:
            fresh /= math.sqrt(c.draw.gammavariate(2, 1) / 2)
        last = c.memory * last + math.sqrt(1 - c.memory**2) * fresh
        errors.append(c.sigma * last)
    return errors
