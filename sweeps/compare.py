"""The comparison of model families: at equal parameters and tokens, over seeds.

Run it with ``bkray sweep compare --preset small``, on other text with ``data.corpus=PATH``. First
each family tries three learning rates, for fewer steps and on a seed that the comparison does not
have, and while any of them is best at its lowest or highest one, all try one more, up to five: a
family may still be best at the end of those. Then it trains with its best one on all seeds. Speed
and memory are measured by length, each rival in turn with ours.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from bkray.config import MixerName, TrialConfig
from bkray.errors import ConfigError
from bkray.knobs import acting_knobs
from bkray.overrides import Overrides, acting, build
from bkray.sweep import (
    OURS,
    SEARCHED,
    SMOKE,
    TIMED,
    Arm,
    Ended,
    Objective,
    Preset,
    Sweep,
)

FAMILIES: dict[str, dict[str, Any]] = {
    name: knobs
    for name, knobs in {
        OURS: {"model.mixer": "bk"},
        "attention": {"model.mixer": "attention", "model.position": "rope"},
        "mamba": {"model.mixer": "mamba"},
        "linear_recurrence": {"model.mixer": "linear_recurrence"},
    }.items()
    if knobs["model.mixer"] in get_args(MixerName)
}
LR_FACTOR = 3.0
"""Between a learning rate that is tried and the next one; the given one comes in the middle."""
MOST_RATES = 5
"""Tried by a family; each tries as many as the others."""
SEARCH_SHARE = 0.5
"""Of the steps that the comparison takes."""
OWN_SEED = 1_000_000
"""Added to the seed where a trial must not be one of the comparison's."""
SET_BY_ARMS = ("model.mixer", "model.position", "train.speed_reference_mixer")


def arms(base: Overrides) -> list[Arm]:
    """Return what comes first: each family at every learning rate, and the rivals' speeds.

    Raises:
        ConfigError: an override for what the arms set, for a model that has no mixers, or for a
            knob of ours that the one timed beside the rivals would not have.
    """
    if base.get("model.build") is not None:
        raise ConfigError("the comparison is of built-in models: leave model.build out")
    if fixed := [path for path in SET_BY_ARMS if path in base]:
        raise ConfigError(
            f"the comparison sets {fixed[0]} itself in every arm, got {base[fixed[0]]}: "
            "leave it out"
        )
    config = build(acting(base))
    check_timed(config)
    # The longest passes are timed first, while others are trained.
    timed = [
        Arm(
            name=f"{TIMED}{name}",
            overrides={
                **family(base, name),
                "seed": config.seed + OWN_SEED,
                "train.speed_lengths": config.train.speed_lengths,
                "train.steps": 1,
            },
        )
        for name in FAMILIES
        if name != OURS and config.train.speed_lengths is not None
    ]
    rates = [config.optimizer.lr * LR_FACTOR**power for power in (-1, 0, 1)]
    searched = [_search(base, name, lr) for name in FAMILIES for lr in rates]
    return timed + searched


def _search(base: Overrides, name: str, lr: float) -> Arm:
    config = build(acting(base))
    return Arm(
        name=f"{SEARCHED}{name}-lr-{lr:.2g}",
        overrides={
            **family(base, name),
            "seed": config.seed + OWN_SEED,
            "train.steps": max(1, round(config.train.steps * SEARCH_SHARE)),
            "optimizer.lr": lr,
        },
    )


def check_timed(config: TrialConfig) -> None:
    """Refuse knobs of our mixer where speeds are measured: the model beside a rival is built from
    the rival's config, with these at their defaults."""
    shared = acting_knobs({"mixer": "linear_recurrence"})
    for name, default in acting_knobs({"mixer": OURS}).items():
        value = getattr(config.model, name)
        if config.train.speed_lengths and name not in shared and value != default:
            raise ConfigError(
                f"model.{name}={value} would not be timed: rivals are timed beside {OURS} with "
                f"{default}; leave it out, or set train.speed_lengths=null"
            )


def follow(base: Overrides, ended: Sequence[Ended]) -> list[Arm]:
    """Return a further rate for each family while one is best at an edge of what it tried; then
    every family at its best rate, once. One that diverged at all rates goes on at the lowest, for
    its seeds count as lost and are not left out."""
    if any(one.name in FAMILIES for one in ended):
        return []
    tried = {name: _tried(name, ended) for name in FAMILIES}
    is_open = any(_best(rates) in (min(rates), max(rates)) for rates in tried.values())
    if is_open and max(map(len, tried.values())) < MOST_RATES:
        return [_search(base, name, _next_rate(rates)) for name, rates in tried.items()]
    return [
        Arm(name=name, overrides={**family(base, name), "optimizer.lr": _best(rates)})
        for name, rates in tried.items()
    ]


def _tried(name: str, ended: Sequence[Ended]) -> dict[float, float]:
    """Return the loss by learning rate of a family's search, inf where it did not end well."""
    return {
        one.overrides["optimizer.lr"]: one.values[0]
        if one.outcome == "ok" and one.values[0] is not None
        else math.inf
        for one in ended
        if one.name.startswith(f"{SEARCHED}{name}-lr-")
    }


def _best(rates: Mapping[float, float]) -> float:
    """Return the rate of least loss, the lowest one of several."""
    return min(rates, key=lambda lr: (rates[lr], lr))


def _next_rate(rates: Mapping[float, float]) -> float:
    """Return a rate beyond the edge that is best, or else one between the best and its better
    neighbour, in the middle of their logarithms."""
    best, sorted_rates = _best(rates), sorted(rates)
    if best == sorted_rates[0]:
        return best / LR_FACTOR
    if best == sorted_rates[-1]:
        return best * LR_FACTOR
    place = sorted_rates.index(best)
    beside = {lr: rates[lr] for lr in (sorted_rates[place - 1], sorted_rates[place + 1])}
    return math.sqrt(best * _best(beside))


def family(base: Overrides, name: str) -> dict[str, Any]:
    """Return the overrides of a family, as wide as makes its parameters equal to ours."""
    from bkray.nn.equal import at_equal_parameters, n_params  # torch takes seconds to import

    own = {**FAMILIES[name], "train.speed_lengths": None, "train.speed_reference_mixer": OURS}
    if name == OURS:
        return own
    target = n_params({**base, **FAMILIES[OURS]})
    found = at_equal_parameters({**base, **FAMILIES[name]}, target)
    return {**own, "model.d_hidden": found["model.d_hidden"]}


SWEEP = Sweep(
    name="compare",
    overview="BK against other mixers at equal parameters and tokens, each at its own best "
    "learning rate",
    base={
        "model.n_seq": 512,
        "train.batch_size": 4,
        "train.eval_windows": 64,
        "train.speed_lengths": "2048,8192,32768",
    },
    rivals=arms,
    follow=follow,
    objectives=(Objective(column="final_val_loss_nats", direction="minimize"),),
    presets={
        "smoke": Preset(
            trials=0,
            seeds=2,
            overrides={**SMOKE, "train.batch_size": 4, "train.speed_lengths": "128,512"},
        ),
        "small": Preset(
            trials=0,
            seeds=8,
            overrides={
                "train.steps": 160,
                "train.eval_every": 160,
                "train.checkpoint_every": 160,
                "optimizer.warmup_steps": 16,
            },
        ),
        "full": Preset(
            trials=0,
            seeds=8,
            overrides={
                "train.batch_size": 16,
                "train.steps": 2000,
                "train.eval_every": 500,
                "train.checkpoint_every": 500,
                "train.eval_windows": 256,
            },
        ),
    },
)
