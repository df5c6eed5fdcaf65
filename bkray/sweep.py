"""A sweep as a value: what is held fixed, what is searched, against which rivals, how far."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from bkray.errors import ConfigError
from bkray.overrides import DENSE, Overrides, build

SWEPT_AT_INFERENCE = {"model.act_threshold": "act", "model.exit_threshold": "exit"}
"""Knobs that one checkpoint can be swept in, and the ``model.depth`` that has them."""

OURS, SEARCHED, TIMED = "bk", "search-", "speed-"
"""Arms of a comparison: our family, and how those begin that search a learning rate, or are there
to be timed; all others are its rivals."""


class Trial(Protocol):
    """What a search space may ask of the trial at hand; names are config paths."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


Space = Callable[[Trial], Overrides]
"""Asks the trial and returns the further overrides that follow from the answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A rival that every sweep trains beside its searched trials.

    One whose overrides set a ``seed``, outside of those that the sweep counts up, is one trial.
    """

    name: str
    overrides: Overrides


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A column of ``trials.parquet`` and which way is better."""

    column: str
    direction: Literal["minimize", "maximize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How far a sweep goes: searched trials, trials per configuration, and overrides that lie over
    those of the sweep."""

    trials: int
    seeds: int = 1
    overrides: Overrides = field(default_factory=dict)
    sampler: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What came of a rival: its name, the overrides that built it, and the gravest outcome of its
    seeds. ``values`` are the objectives' means over the seeds; ``None`` where not finite."""

    name: str
    overrides: Overrides
    outcome: str
    values: tuple[float | None, ...]


def no_space(trial: Trial) -> Overrides:
    """Ask for nothing: the rivals are all there is to run."""
    return {}


def no_rivals(base: Overrides) -> Sequence[Arm]:
    """Return no rival."""
    return ()


def nothing_follows(base: Overrides, ended: Sequence[Ended]) -> Sequence[Arm]:
    """Return no further rival."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """``bkray sweep`` runs one of these by name, or the ``SWEEP`` of a user's file.

    ``grid`` is the space that ``--sampler grid`` walks, where it differs from ``space``. ``first``
    are points tried before the sampler is asked. ``rivals`` gets the base overrides and returns
    the arms; a sweep of arms alone has no ``space``, and presets of 0 trials. ``follow`` gets all
    rivals that ended and returns further ones, again and again until it returns none; it answers
    by them alone, so that a resumed sweep goes the same way. Only a sweep without space has it.

    ``frontier`` is the variant that ``--frontier`` runs. It does not search the knob
    ``at_inference``, which is swept from its checkpoints; its arms train a few other values of
    that knob, to tell what testing away from training costs. It is one of ``SWEPT_AT_INFERENCE``.
    """

    name: str
    objectives: tuple[Objective, ...]
    presets: Mapping[str, Preset]
    base: Overrides = field(default_factory=dict)
    space: Space = no_space
    grid: Space | None = None
    first: tuple[Overrides, ...] = ()
    rivals: Callable[[Overrides], Sequence[Arm]] = no_rivals
    follow: Callable[[Overrides, Sequence[Ended]], Sequence[Arm]] = nothing_follows
    sampler: str = "tpe"
    overview: str = ""
    frontier: "Sweep | None" = None
    at_inference: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):  # it names a folder
            raise ConfigError(
                f"sweep name {self.name!r}: letters, digits, _, . and - are allowed, the first of "
                "them a letter, a digit or _"
            )
        if self.follow is not nothing_follows and self.space is not no_space:
            raise ConfigError(f"sweep {self.name} has a space and follow: leave one of them out")
        if self.at_inference and self.at_inference not in SWEPT_AT_INFERENCE:
            raise ConfigError(
                f"sweep {self.name}: at_inference must be one of {', '.join(SWEPT_AT_INFERENCE)}, "
                f"got {self.at_inference!r}"
            )


def dense_depths(base: Overrides) -> list[Arm]:
    """Return dense models of 1 to L layers, the honest rivals of one that may compute less."""
    config = build(base)
    n_layers = config.model.n_layers
    assert n_layers is not None
    reference = config.train.speed_reference_layers or n_layers
    shared = {**DENSE, "train.speed_reference_layers": reference}
    return [
        Arm(name=f"dense-{depth}", overrides={**shared, "model.n_layers": depth})
        for depth in range(1, n_layers + 1)
    ]


SMOKE: Overrides = {
    "model.d_model": 32,
    "model.n_layers": 2,
    "model.n_seq": 64,
    "train.steps": 20,
    "train.batch_size": 8,
    "train.eval_every": 10,
    "train.eval_windows": 16,
    "train.checkpoint_every": 10,
    "optimizer.warmup_steps": 4,
}
"""Trials of a second or two: enough to try the whole path of a sweep."""
