"""The comparison of model families: at equal parameters and tokens, over seeds.

Run it with ``bkray sweep compare --preset small``, on other text with ``data.corpus=PATH``. First
each family tries three learning rates, for fewer steps and on a seed that the comparison does not
have; then it trains with the best of them on all seeds. Speed and memory are measured by length,
each rival in turn with ours.
"""

from collections.abc import Sequence
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
LR_FACTORS = (1 / 3, 1.0, 3.0)
"""Learning rates tried, as multiples of the given one."""
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
    own_seed = {"seed": config.seed + OWN_SEED}
    steps = max(1, round(config.train.steps * SEARCH_SHARE))
    # The longest passes are timed first, while others are trained.
    timed = [
        Arm(
            name=f"{TIMED}{name}",
            overrides={
                **(family(base, name) | own_seed),
                "train.speed_lengths": config.train.speed_lengths,
                "train.steps": 1,
            },
        )
        for name in FAMILIES
        if name != OURS and config.train.speed_lengths is not None
    ]
    searched = [
        Arm(
            name=f"{SEARCHED}{name}-lr-{lr:.2g}",
            overrides={
                **(family(base, name) | own_seed),
                "train.steps": steps,
                "optimizer.lr": lr,
            },
        )
        for name in FAMILIES
        for lr in (config.optimizer.lr * factor for factor in LR_FACTORS)
    ]
    return timed + searched


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
    """Return every family at the learning rate that was best, once; one that diverged at all rates
    goes on at the lowest, for its seeds count as lost and are not left out."""
    if any(one.name in FAMILIES for one in ended):
        return []
    return [
        Arm(
            name=name,
            overrides={**family(base, name), "optimizer.lr": best_rate(name, ended)},
        )
        for name in FAMILIES
    ]


def family(base: Overrides, name: str) -> dict[str, Any]:
    """Return the overrides of a family, as wide as makes its parameters equal to ours."""
    from bkray.nn.equal import at_equal_parameters, n_params  # torch takes seconds to import

    own = {**FAMILIES[name], "train.speed_lengths": None, "train.speed_reference_mixer": OURS}
    if name == OURS:
        return own
    target = n_params({**base, **FAMILIES[OURS]})
    found = at_equal_parameters({**base, **FAMILIES[name]}, target)
    return {**own, "model.d_hidden": found["model.d_hidden"]}


def best_rate(name: str, ended: Sequence[Ended]) -> float:
    """Return the learning rate of least loss in a family's search, the lowest if none is ok."""
    tried = [one for one in ended if one.name.startswith(f"{SEARCHED}{name}-lr-")]
    losses = [
        (one.values[0], one.overrides["optimizer.lr"])
        for one in tried
        if one.outcome == "ok" and one.values[0] is not None
    ]
    rates: list[float] = [one.overrides["optimizer.lr"] for one in tried]
    return min(losses)[1] if losses else min(rates)


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
                "train.steps": 200,
                "train.eval_every": 200,
                "train.checkpoint_every": 200,
                "optimizer.warmup_steps": 20,
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
