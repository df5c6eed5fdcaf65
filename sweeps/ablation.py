"""The ablation: every adaptive feature on and off, and every pair of features that goes together.

Run it with ``bkray sweep ablation --preset smoke``, and with ``--seeds 3`` for means: all arms
have the same seeds, and ``bkray show`` compares them seed by seed.
"""

import itertools
from collections.abc import Iterator

from bkray.errors import ConfigError
from bkray.overrides import DENSE, Overrides, acting, build
from bkray.sweep import SMOKE, Arm, Objective, Preset, Sweep

FEATURES: dict[str, tuple[str, str | bool | int]] = {
    "act": ("model.depth", "act"),
    "exit": ("model.depth", "exit"),
    "length": ("model.length", "learned"),
    "multiscale": ("model.multiscale", True),
    "sparsity": ("model.sparsity", "learned"),
    "experts": ("model.n_experts", 4),
}
SET_BY_ARMS = (*DENSE, "model.n_experts")


def arms(base: Overrides) -> list[Arm]:
    """Return ``none``, each feature alone, and the pairs that a config allows, as ``act+length``.

    Raises:
        ConfigError: an override for what the arms set, or for a model that has no such features.
    """
    if base.get("model.build") is not None:
        raise ConfigError("the ablation is of the built-in model: leave model.build out")
    if fixed := [path for path in SET_BY_ARMS if path in base]:
        raise ConfigError(
            f"the ablation sets {fixed[0]} itself in every arm, got {base[fixed[0]]}: leave it out"
        )
    alone = [Arm(name=name, overrides=_on(name)) for name in FEATURES]
    return [Arm(name="none", overrides={}), *alone, *_pairs(base)]


def _pairs(base: Overrides) -> Iterator[Arm]:
    for first, second in itertools.combinations(FEATURES, 2):
        if FEATURES[first][0] == FEATURES[second][0]:
            continue  # one slot holds one of them
        overrides = _on(first, second)
        try:
            build(acting({**base, **overrides}))
        except ConfigError:
            continue  # nor do they go together in different slots
        yield Arm(name=f"{first}+{second}", overrides=overrides)


def _on(*names: str) -> Overrides:
    return dict(FEATURES[name] for name in names)


SWEEP = Sweep(
    name="ablation",
    overview="every adaptive feature on and off, and in pairs, on patterns, text and noise",
    base={
        "data.corpus": "mixture",
        "model.n_layers": 4,
        "train.batch_size": 24,  # as in sweeps/length.py
        "train.eval_windows": 96,
        # Every arm is timed against one and the same model, else speeds would not multiply.
        "train.speed_reference_experts": 1,
    },
    rivals=arms,
    objectives=(
        Objective(column="final_val_loss_nats", direction="minimize"),
        Objective(column="speedup_measured", direction="maximize"),
    ),
    presets={
        "smoke": Preset(
            trials=0,
            overrides={
                **SMOKE,
                "model.n_layers": 4,
                "train.batch_size": 6,
                "train.eval_windows": 18,
            },
        ),
        "small": Preset(trials=0, overrides={"train.steps": 400}),
        "full": Preset(trials=0, overrides={"train.steps": 2000}),
    },
)
