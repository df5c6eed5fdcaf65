"""What a search space answers: the knobs it asked for, the values it got, what it returned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bkray.errors import ConfigError
from bkray.overrides import Overrides, full_path
from bkray.sweep import Space, Trial


class Answer(NamedTuple):
    """``chosen`` are the knobs the trial was asked for, ``returned`` what the space added."""

    chosen: dict[str, Any]
    returned: dict[str, Any]


def ask(space: Space, trial: Trial, *, pinned: Overrides, point: Overrides) -> Answer:
    """Return the answer of ``space``; every name in it is a config path.

    Args:
        pinned: what the user fixed by an override. The space gets it without asking the trial,
            inside its range or not: what the user says goes.
        point: values which the trial is known to answer with, checked against their ranges.

    Raises:
        ConfigError: an unknown config path, a point outside its range, no mapping returned.
    """
    knobs = Knobs(trial, pinned=pinned, point=point)
    returned = space(knobs)
    if not isinstance(returned, Mapping):
        raise ConfigError(
            f"a search space must return its further overrides, or {{}}, got {returned!r}"
        )
    return Answer(knobs.chosen, paths_of(returned))


def paths_of(overrides: Overrides) -> dict[str, Any]:
    """Return the overrides under their full config paths."""
    return {full_path(name): value for name, value in overrides.items()}


@dataclass(slots=True)
class Knobs:
    """A trial that checks names, keeps what the user pinned and remembers what was asked."""

    trial: Trial
    pinned: Overrides
    point: Overrides
    chosen: dict[str, Any] = field(default_factory=dict)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        path = full_path(name)
        if path in self.pinned:
            return self.pinned[path]  # type: ignore[no-any-return]  # the config checks it
        self._check_range(path, low, high)
        value = self.trial.suggest_float(path, low, high, step=step, log=log)
        self.chosen[path] = value
        return value

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        path = full_path(name)
        if path in self.pinned:
            return self.pinned[path]  # type: ignore[no-any-return]  # the config checks it
        self._check_range(path, low, high)
        value = self.trial.suggest_int(path, low, high, step=step, log=log)
        self.chosen[path] = value
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        path = full_path(name)
        if path in self.pinned:
            return self.pinned[path]
        if path in self.point and self.point[path] not in choices:
            raise _outside(path, self.point[path], ", ".join(map(str, choices)))
        value = self.trial.suggest_categorical(path, choices)
        self.chosen[path] = value
        return value

    def _check_range(self, path: str, low: float, high: float) -> None:
        if path in self.point and not low <= self.point[path] <= high:
            raise _outside(path, self.point[path], f"{low} to {high}")


def _outside(path: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(
        f"the first point {path}={value} lies outside the search space ({allowed}): "
        "widen the space or mend the point"
    )
