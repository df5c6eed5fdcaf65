"""What a sweep proposes: its value, and every choice of the user that decides the proposals."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bkray.cluster.grid import described, swept_paths, walk
from bkray.cluster.knobs import paths_of
from bkray.cluster.samplers import check_sampler
from bkray.columns import RESULTS
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.overrides import Overrides, acting, build, giving_way
from bkray.sweep import Arm, Ended, Preset, Space, Sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A configuration to try, by the trial of its first seed and those of the seeds after it.

    ``overrides`` build ``config``, the first trial; ``arm`` is empty for searched configurations.
    An arm with a seed of its own is one trial, all else ``n_seeds``.
    """

    number: int
    arm: str
    overrides: dict[str, Any]
    config: TrialConfig
    n_seeds: int

    def seeded(self, turn: int) -> dict[str, Any]:
        """Return the overrides of the trial whose seed is ``turn`` after the first."""
        return {**self.overrides, "seed": self.config.seed + turn}


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A sweep with everything chosen that decides what it proposes.

    ``overrides`` are the user's: they win over the sweep, its preset and its space, and a knob
    among them is not searched. ``n_trials`` counts searched configurations; ``None`` walks the
    whole grid. Of each configuration, rivals as well, ``seeds`` trials are run.
    """

    sweep: Sweep
    preset: Preset
    overrides: Overrides
    sampler: str
    seed: int
    n_trials: int | None
    seeds: int = 1

    def __post_init__(self) -> None:
        check_sampler(self.sampler)
        if self.seeds < 1:
            raise ConfigError(f"seeds must be 1 or more, got {self.seeds}")
        for objective in self.sweep.objectives:
            if objective.column not in RESULTS:
                raise ConfigError(
                    f"objective {objective.column!r} is no number that trials report: "
                    f"allowed are {', '.join(RESULTS)}"
                )
        if self.n_trials is not None and self.n_trials < 0:
            raise ConfigError(f"trials must be 0 or more, got {self.n_trials}")
        if self.n_trials is None and self.sampler != "grid":
            raise ConfigError(f"sampler={self.sampler} has no end: say how many trials")

    @property
    def pinned(self) -> dict[str, Any]:
        """The user's overrides under their config paths."""
        return paths_of(self.overrides)

    @property
    def base(self) -> dict[str, Any]:
        """Sweep, preset and user, the later ones winning, as ``giving_way`` says."""
        own = paths_of(self.sweep.base) | paths_of(self.preset.overrides)
        return giving_way(own, self.pinned)

    def rivals(self) -> list[Proposal]:
        """Return the arms. An override for a knob that an arm's model lacks is left out there."""
        return self._arms(0, self.sweep.rivals(self.base))

    def followers(self, ended: Sequence[Ended]) -> list[Proposal]:
        """Return the arms that follow from all those that ended, and were not among them."""
        return self._arms(len(ended), self.sweep.follow(self.base, ended))

    def _arms(self, first: int, arms: Sequence[Arm]) -> list[Proposal]:
        return [
            self.propose(number, acting(self.base | paths_of(arm.overrides)), arm=arm.name)
            for number, arm in enumerate(arms, start=first)
        ]

    def points(self) -> list[dict[str, Any]]:
        """Return what is tried before the sampler is asked, without repetitions."""
        firsts = [paths_of(point) for point in self.sweep.first]
        found = [{k: v for k, v in point.items() if k not in self.pinned} for point in firsts]
        if self.sampler == "grid":
            found += islice(walk(self.space, self.pinned), self.n_trials)
        unique = {json.dumps(point, sort_keys=True): point for point in found}
        return list(unique.values())[: self.n_trials]

    @property
    def n_searched(self) -> int:
        """Configurations beside the rivals; a grid may end before ``n_trials``."""
        if self.sampler == "grid" or self.n_trials is None:
            return len(self.points())
        return self.n_trials

    @property
    def n_configurations(self) -> int:
        """Rivals and searched configurations together."""
        return len(self.rivals()) + self.n_searched

    @property
    def n_planned(self) -> int:
        """Trials: every seed of every configuration."""
        return self.n_searched * self.seeds + sum(rival.n_seeds for rival in self.rivals())

    @property
    def first_seed(self) -> int:
        """The seed from which those of a configuration count up."""
        first: int = self.base.get("seed", 0)
        return first

    @property
    def space(self) -> Space:
        """The grid where one is walked and the sweep has its own, else the space."""
        walked = self.sweep.grid if self.sampler == "grid" else None
        return walked or self.sweep.space

    def swept(self) -> list[str]:
        """Return the config paths that are searched."""
        return swept_paths(self.space, self.pinned)

    def described(self) -> dict[str, str]:
        """Return what the space says of each config path, in words."""
        return described(self.space, self.pinned)

    def propose(self, number: int, overrides: Overrides, *, arm: str = "") -> Proposal:
        """Return the proposal.

        Raises:
            ConfigError: no config allows the overrides, or their seed is their own although the
                sweep counts seeds: two configurations could then mean one and the same trial.
        """
        full = {**overrides, "arm": arm} if arm else dict(overrides)
        config = build(full)
        first = self.first_seed
        is_alone = bool(arm) and not first <= config.seed < first + self.seeds
        if self.seeds > 1 and config.seed != first and not is_alone:
            raise ConfigError(
                f"seeds={self.seeds} count up from seed={first}, but the sweep itself sets "
                f"seed={config.seed}: leave --seeds out, or take the seed out of the sweep"
            )
        n_seeds = 1 if is_alone else self.seeds
        return Proposal(number=number, arm=arm, overrides=full, config=config, n_seeds=n_seeds)
