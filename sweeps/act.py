"""The ACT sweep: halting threshold by ponder cost, against dense models of every smaller depth.

Run it with ``bkray sweep act --preset smoke``.
"""

from bkray.sweep import SMOKE, Objective, Preset, Sweep, dense_depths
from search_spaces.act import GUIDE_PRESETS, suggest, suggest_grid

N_LAYERS = 4


SWEEP = Sweep(
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
