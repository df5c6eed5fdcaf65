"""Walks a define-by-run search space from end to end by replaying its function.

The function is called again and again, each time with the next combination of answers, like an
odometer whose later wheels may depend on the earlier ones.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
    return (point.chosen for point in _replay(space, pinned, _every_value))


def swept_paths(space: Space, pinned: Overrides) -> list[str]:
    """Return the config paths which the space can ask for, pinned ones left out.

    Numbers are tried at both ends of their range, categories all.
    """
    return list(dict.fromkeys(path for point in _look(space, pinned) for path in point.chosen))


def described(space: Space, pinned: Overrides) -> dict[str, str]:
    """Return what the space says of each config path, for a reader and for comparison:
    ``float 1e-05..10 log``, ``one of bk, attention``, ``set to 4``; and under which answers it is
    asked for, where it is not always.

    Numbers are tried at both ends of their range, categories all.
    """
    points = list(_look(space, pinned))
    said: dict[str, dict[str, None]] = {}
    for point in points:
        for path, words in point.said.items():
            said.setdefault(path, {})[words] = None
    return {path: " or ".join(words) + _condition(path, points) for path, words in said.items()}


_Values = Callable[[str, float, float, float | None], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class _Point:
    """What was ``chosen``, and what the space ``said`` of every path."""

    chosen: dict[str, Any]
    said: dict[str, str]


def _look(space: Space, pinned: Overrides) -> Iterator[_Point]:
    return itertools.islice(_replay(space, pinned, _both_ends), _LOOK_AT_MOST)


def _condition(path: str, points: Sequence[_Point]) -> str:
    """Return the answers to other questions that go with ``path``, where they are not all."""
    asking = [point.chosen for point in points if path in point.said]
    if len(asking) == len(points):
        return ""
    conditions = []
    for other in dict.fromkeys(name for chosen in asking for name in chosen if name != path):
        everywhere = {str(point.chosen.get(other)) for point in points}
        here = {str(chosen.get(other)) for chosen in asking}
        if here < everywhere and "None" not in here:
            conditions.append(f"{other}={'|'.join(sorted(here))}")
    return f" if {' and '.join(conditions)}" if conditions else ""


def _replay(space: Space, pinned: Overrides, values: _Values) -> Iterator[_Point]:
    wheels: list[int] = []
    while True:
        trial = _Replay(wheels, values)
        answer = ask(space, trial, pinned=pinned, point={})
        fixed = {path: f"set to {value}" for path, value in answer.returned.items()}
        yield _Point(answer.chosen, trial.said | fixed)
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
        self.said: dict[str, str] = {}
        self._values = values
        self._answers: dict[str, Any] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        words = f"float {low:.12g}..{high:.12g}{_step(step)}{' log' if log else ''}"
        return float(self._answer(name, words, lambda: self._values(name, low, high, step)))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        words = f"int {low}..{high}{_step(step if step > 1 else None)}{' log' if log else ''}"
        return int(self._answer(name, words, lambda: self._values(name, low, high, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._answer(name, f"one of {', '.join(map(str, choices))}", lambda: choices)

    def _answer(self, name: str, words: str, values: Callable[[], Sequence[Any]]) -> Any:
        if name in self._answers:
            return self._answers[name]
        allowed = values()
        turn = len(self.sizes)
        if turn == len(self.wheels):
            self.wheels.append(0)
        self.sizes.append(len(allowed))
        self._answers[name] = allowed[self.wheels[turn]]
        self.said[name] = words
        return self._answers[name]


def _step(step: float | None) -> str:
    return "" if step is None else f" step {step:.12g}"


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
