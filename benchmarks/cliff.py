"""How many proposals a searcher wastes on configurations that diverge, and what it finds.

    python -m benchmarks.cliff [--landscapes hard] [--samplers tpe] [--ways avoiding] [--open 4]

The learning rate goes from 1e-5 to 10 and diverges in the upper 40% of that (in decades); the best
one lies 0.3 decades below the edge. Proposals come from the ledger that sweeps use. The ways to
tell a searcher that a trial diverged are those of ``WAYS``; ``avoiding`` is what sweeps do, except
with ``gp``, which is told a penalised value alone.

``late`` is the share of diverged ones among proposals 21 to 60, repeated ones as well; ``regret``
is by how much the true loss of the healthy trial that measured best exceeds the least possible;
``paired`` is that regret less the one of random search with the same seed, mean and 95% interval
over seeds.
"""

import argparse
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np

from bkray.cluster.ledger import Ledger
from bkray.cluster.search import Search
from bkray.config import TrialConfig
from bkray.overrides import Overrides
from bkray.stats import bootstrap_interval
from bkray.sweep import Objective, Preset, Space, Sweep, Trial

EDGE, TO_EDGE = -1.4, 0.3
"""Decades: log10 of the learning rate at the edge; the optimum's distance to it."""
NOISE = 0.02
PROPOSALS, EARLY = 60, 20
FIRST_SEED = 100
"""Seeds below were used to choose between models and their constants."""


def rate(trial: Trial) -> Overrides:
    """Ask for the learning rate."""
    trial.suggest_float("optimizer.lr", 1e-5, 10.0, log=True)
    return {}


def rate_and_dropout(trial: Trial) -> Overrides:
    """Ask for the learning rate and a knob beside it."""
    trial.suggest_float("model.dropout", 0.0, 0.5)
    return rate(trial)


def four(trial: Trial) -> Overrides:
    """Ask for the learning rate and three knobs beside it."""
    trial.suggest_float("optimizer.weight_decay", 0.0, 1.0)
    trial.suggest_float("optimizer.beta1", 0.5, 0.99)
    return rate_and_dropout(trial)


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """A space, the nats that its innocent knobs cost, and its edge.

    The edge lies at ``edge`` decades, ``slant`` decades further down for each unit of dropout from
    0.25 on. A trial ``width`` decades above it diverges with probability e / (1 + e); 0 is sharp.
    """

    space: Space
    innocent: Callable[[TrialConfig], float] = lambda config: 0.0
    edge: float = EDGE
    slant: float = 0.0
    width: float = 0.0

    def run(self, config: TrialConfig, seed: int) -> tuple[float | None, float]:
        """Return the loss as measured, ``None`` where the trial diverged, and without noise."""
        decades = math.log10(config.optimizer.lr)
        edge = self.edge - self.slant * ((config.model.dropout or 0.0) - 0.25)
        rng = np.random.default_rng([seed, int(1e9 * (decades + 6))])
        noise, luck = rng.normal(0, NOISE), rng.logistic(0, self.width)
        true = 0.5 * (decades - edge + TO_EDGE) ** 2 + self.innocent(config)
        return (None if decades + luck > edge else 2 + true + noise), true


def _dropout(config: TrialConfig) -> float:
    return 2 * ((config.model.dropout or 0.0) - 0.2) ** 2


def _three(config: TrialConfig) -> float:
    rest = 0.1 * (config.optimizer.weight_decay - 0.3) ** 2 + (config.optimizer.beta1 - 0.8) ** 2
    return _dropout(config) + rest


LANDSCAPES: Mapping[str, Landscape] = {
    "hard": Landscape(space=rate),
    "second": Landscape(space=rate_and_dropout, innocent=_dropout),
    "soft": Landscape(space=rate, width=0.1),
    "slanted": Landscape(space=rate_and_dropout, slant=2.0),
    "four": Landscape(space=four, innocent=_three),
    "early": Landscape(space=rate, edge=-4.1),
}


class Penalised(Ledger):
    """Optuna learns a value worse than the worst finite one, and nothing else."""

    def _diverged(self) -> dict[int, bool]:
        return {}


class Ignored(Penalised):
    """Optuna is told that the trial failed: nothing is learned."""

    def _values_for_optuna(self, told):  # type: ignore[no-untyped-def]
        return None if told.outcome == "diverged" else super()._values_for_optuna(told)


class Constrained(Penalised):
    """Optuna's constraints, beside the penalised value, which the GP fits as well."""

    def _values_for_optuna(self, told):  # type: ignore[no-untyped-def]
        values = super()._values_for_optuna(told)
        return [0.0] * len(told.values) if told.outcome == "diverged" and not values else values

    def _tell_optuna(self, row, told):  # type: ignore[no-untyped-def]
        violated = 1.0 if told.outcome == "diverged" else -1.0
        row_id = self._study.get_trials(deepcopy=False)[row]._trial_id
        self._storage.set_trial_system_attr(row_id, "constraints:diverged", violated)
        super()._tell_optuna(row, told)


WAYS: Mapping[str, type[Ledger]] = {
    "ignored": Ignored,
    "penalised": Penalised,
    "constraint": Constrained,
    "avoiding": Ledger,
}


class Found(NamedTuple):
    """Of one sweep."""

    late: float
    regret: float


def sweep(way: type[Ledger], sampler: str, landscape: Landscape, seed: int, n_open: int) -> Found:
    """Run one sweep, the longest-running trial ending first."""
    loss = Objective(column="final_val_loss_nats", direction="minimize")
    found = Sweep(name="cliff", space=landscape.space, objectives=(loss,), presets={})
    search = Search(
        sweep=found,
        preset=Preset(trials=PROPOSALS),
        overrides={},
        sampler=sampler,
        seed=seed,
        n_trials=PROPOSALS,
    )
    ledger = way(None, search)
    running = deque(p for _ in range(n_open) if (p := ledger.ask()) is not None)
    healthy: list[tuple[float, float]] = []
    while running:
        proposal = running.popleft()
        measured, true = landscape.run(proposal.config, seed)
        if measured is not None:
            healthy.append((measured, true))
        ledger.tell(proposal, [measured], "diverged" if measured is None else "ok")
        if (following := ledger.ask()) is not None:
            running.append(following)
    told = [ledger._told[number].outcome for number in range(EARLY, PROPOSALS)]
    ledger.close()
    return Found(told.count("diverged") / len(told), min(healthy)[1])


def show(label: str, found: Sequence[Found], random: Sequence[Found]) -> None:
    """Print one row of the table."""
    late, at_random = (fmean(one.late for one in group) for group in (found, random))
    paired = bootstrap_interval([a.regret - b.regret for a, b in zip(found, random, strict=True)])
    print(
        f"{label:34s} late {late:.3f} = {late / at_random:4.2f} of random, "
        f"worst seed {max(one.late for one in found):.2f}; "
        f"regret {fmean(one.regret for one in found):.4f}, "
        f"paired {paired.mean:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]",
        flush=True,
    )


def main() -> None:
    """Print a row for every landscape, sampler and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--landscapes", nargs="+", default=["hard"], choices=list(LANDSCAPES))
    parser.add_argument("--samplers", nargs="+", default=["tpe", "gp", "nsga2"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--open", type=int, default=1, help="trials that run at once")
    arguments = parser.parse_args()
    for name in arguments.landscapes:

        def over_seeds(way: type[Ledger], sampler: str, landscape: str = name) -> list[Found]:
            seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
            return [sweep(way, sampler, LANDSCAPES[landscape], s, arguments.open) for s in seeds]

        random = over_seeds(Ledger, "random")
        show(f"{name} random", random, random)
        for sampler in arguments.samplers:
            for way in arguments.ways:
                if (sampler, way) == ("gp", "avoiding"):
                    continue  # the same as penalised
                show(f"{name} {sampler} {way}", over_seeds(WAYS[way], sampler), random)


if __name__ == "__main__":
    main()
