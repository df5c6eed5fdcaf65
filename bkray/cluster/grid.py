"""Walks a define-by-run search space from end to end by replaying its function.

The function is called again and again, each time with the next combination of answers, like an
odometer whose later wheels may depend on the earlier ones.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from bkray.cluster.knobs import ask
from bkray.errors import ConfigError
from bkray.overrides import Overrides
from bkray.sweep import Space

_LOOK_AT_MOST = 4096
"""Combinations tried to learn which knobs a space can ask for."""


def walk(space: Space, pinned: Overrides) -> Iterator[dict[str, Any]]:
    """Yield every point of the space, the last knob changing fastest.

    Raises:
        ConfigError: a float without ``step`` has no end of values.
    """
    return _replay(space, pinned, _every_value)


def swept_paths(space: Space, pinned: Overrides) -> list[str]:
    """Return the config paths which the space can ask for, pinned ones left out.

    Numbers are tried at both ends of their range, categories all.
    """
    points = itertools.islice(_replay(space, pinned, _both_ends), _LOOK_AT_MOST)
    return list(dict.fromkeys(path for point in points for path in point))


_Values = Callable[[str, float, float, float | None], Sequence[Any]]


def _replay(space: Space, pinned: Overrides, values: _Values) -> Iterator[dict[str, Any]]:
    wheels: list[int] = []
    while True:
        trial = _Replay(wheels, values)
        yield ask(space, trial, pinned=pinned, point={}).chosen
        wheels, sizes = trial.wheels, trial.sizes
        while wheels and wheels[-1] + 1 == sizes[len(wheels) - 1]:
            wheels.pop()
        if not wheels:
            return
        wheels[-1] += 1


class _Replay:
    """Answers the first questions by ``wheels``, every further one by its first value."""

    def __init__(self, wheels: Sequence[int], values: _Values) -> None:
        self.wheels = list(wheels)
        self.sizes: list[int] = []
        self._values = values
        self._answers: dict[str, Any] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._answer(name, lambda: self._values(name, low, high, step)))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        return int(self._answer(name, lambda: self._values(name, low, high, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._answer(name, lambda: choices)

    def _answer(self, name: str, values: Callable[[], Sequence[Any]]) -> Any:
        if name in self._answers:
            return self._answers[name]
        allowed = values()
        turn = len(self.sizes)
        if turn == len(self.wheels):
            self.wheels.append(0)
        self.sizes.append(len(allowed))
        self._answers[name] = allowed[self.wheels[turn]]
        return self._answers[name]


def _every_value(name: str, low: float, high: float, step: float | None) -> list[float]:
    if step is None:
        raise ConfigError(
            f"sampler=grid cannot walk {name}: a float between {low} and {high} without step has "
            "no end of values; give it a step, use suggest_categorical, or set the sweep's grid"
        )
    first, last, stride = (Decimal(str(number)) for number in (low, high, step))
    return [float(first + i * stride) for i in range(int((last - first) / stride) + 1)]


def _both_ends(name: str, low: float, high: float, step: float | None) -> list[float]:
    return [low, high] if low < high else [low]
