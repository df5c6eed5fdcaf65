"""The ACT sweep: halting threshold by ponder cost, against dense models of every smaller depth.

Run it with ``bkray sweep act --preset smoke``. With ``--frontier`` one model per ponder cost is
trained, and the threshold is swept from its checkpoint.
"""

from dataclasses import replace

from bkray.errors import ConfigError
from bkray.overrides import Overrides
from bkray.sweep import SMOKE, Arm, Objective, Preset, Sweep, dense_depths
from search_spaces.act import (
    GUIDE_PRESETS,
    LAMBDAS,
    suggest,
    suggest_cost,
    suggest_cost_grid,
    suggest_grid,
)

N_LAYERS = 4

TRAINED_AT = 0.9
"""Threshold of the models whose threshold is swept at inference: the middle of the matrix."""
MATRIX_THRESHOLDS = (0.5, 0.9, 0.99)
MATRIX_LAMBDA = 0.01
"""The middle one of the guides'."""


def dense_and_matrix(base: Overrides) -> list[Arm]:
    """Return the dense rivals, and ACT trained at the other thresholds of the matrix.

    Raises:
        ConfigError: an override for a model whose threshold cannot be swept at inference.
    """
    if base["model.depth"] != "act" or base.get("model.multiscale"):
        raise ConfigError(
            "--frontier sweeps the threshold of model.depth=act with model.multiscale=false, got "
            f"depth={base['model.depth']} and multiscale={base.get('model.multiscale', False)}"
        )
    cost = base.get("model.act_lambda", MATRIX_LAMBDA)
    others = [threshold for threshold in MATRIX_THRESHOLDS if threshold != base[_THRESHOLD]]
    return dense_depths(base) + [
        Arm(name=f"act-{other}", overrides={_THRESHOLD: other, "model.act_lambda": cost})
        for other in others
    ]


_THRESHOLD = "model.act_threshold"

_TRAINED = Sweep(
    name="act",
    overview="act_threshold x act_lambda, against dense models of depth 1 to L",
    base={"model.depth": "act", "model.n_layers": N_LAYERS},
    space=suggest,
    grid=suggest_grid,
    first=GUIDE_PRESETS,
    rivals=dense_depths,
    objectives=(
        # The last step's, not the best: layers and speed are those of the last step as well.
        Objective(column="final_val_loss_nats", direction="minimize"),
        Objective(column="speedup_measured", direction="maximize"),
    ),
    # The proposals of qmc do not depend on measured times, so two runs with one seed train the
    # same models; a sampler that learns from speedup_measured would part with the first jitter.
    sampler="qmc",
    presets={
        "smoke": Preset(
            trials=4,
            overrides=SMOKE,
        ),
        "small": Preset(trials=12, overrides={"train.steps": 400}),
        "full": Preset(trials=30, overrides={"train.steps": 2000}, sampler="grid"),
    },
)

_SWEPT_AT_INFERENCE = replace(
    _TRAINED,
    overview="act_lambda, with act_threshold swept from the checkpoints",
    base={**_TRAINED.base, _THRESHOLD: TRAINED_AT},
    space=suggest_cost,
    grid=suggest_cost_grid,
    first=({"model.act_lambda": MATRIX_LAMBDA},),
    rivals=dense_and_matrix,
    presets={
        name: replace(preset, trials=2 if name == "smoke" else len(LAMBDAS), sampler="grid")
        for name, preset in _TRAINED.presets.items()
    },
    at_inference=_THRESHOLD,
)

SWEEP = replace(_TRAINED, frontier=_SWEPT_AT_INFERENCE)
