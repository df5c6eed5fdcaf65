"""The parts of the BK model, each taken out or put in: heads, values, energies, experts, branch.

Run it with ``bkray sweep parts --preset small``: all arms have the same 8 seeds and data, and
``bkray show`` holds each against its reference, seed by seed. Parameters are not held equal; the
tables tell how many an arm has.
"""

from bkray.errors import ConfigError
from bkray.overrides import Overrides, acting, build
from bkray.sweep import SMOKE, Arm, Objective, Preset, Sweep

PARTS: dict[str, Overrides] = {
    "4-heads": {"model.n_heads": 4},
    "no-values": {"model.n_values": 0},
    "zero-energies": {"model.energies": "zero"},
    "low-rank": {"model.semiseparable_rank": 16},
    "experts": {"model.n_experts": 4},
    "experts-scattering": {"model.n_experts": 4, "model.router": "scattering"},
}
"""As few as 8 seeds can decide about."""

SET_BY_ARMS = tuple(dict.fromkeys(path for part in PARTS.values() for path in part))


def arms(base: Overrides) -> list[Arm]:
    """Return ``base``, and every part changed by itself; an arm ``a-b`` is held against ``a``
    where that is an arm, else against ``base``.

    Raises:
        ConfigError: an override for what the arms set, or a model without these parts.
    """
    if fixed := [path for path in SET_BY_ARMS if path in base]:
        raise ConfigError(
            f"the sweep parts sets {fixed[0]} itself, got {base[fixed[0]]}: leave it out"
        )
    model = build(acting(base)).model
    if model.mixer != "bk":
        raise ConfigError("the sweep parts is of the BK model: leave model.mixer and build out")
    changed = [Arm(name=name, overrides=overrides) for name, overrides in PARTS.items()]
    return [Arm(name="base", overrides={}), *changed]


SWEEP = Sweep(
    name="parts",
    overview="heads, values, energies, low-rank branch, experts and their router, one at a time",
    base={"model.mixer": "bk"},
    rivals=arms,
    objectives=(Objective(column="final_val_loss_nats", direction="minimize"),),
    presets={
        "smoke": Preset(trials=0, overrides=SMOKE),
        "small": Preset(
            trials=0,
            seeds=8,
            overrides={
                "train.steps": 100,
                "train.eval_every": 100,
                "train.checkpoint_every": 100,
                "optimizer.warmup_steps": 10,
            },
        ),
        "full": Preset(trials=0, seeds=8, overrides={"train.steps": 2000}),
    },
)
