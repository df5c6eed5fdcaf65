"""The length sweep: penalty by bin layout, against dense models of every depth.

Run it with ``bkray sweep length --preset smoke``; on text of your own with ``data.corpus=PATH``.
"""

from bkray.sweep import SMOKE, Objective, Preset, Sweep, dense_depths
from search_spaces.length import GUIDE_PRESETS, suggest, suggest_grid

SWEEP = Sweep(
    name="length",
    overview="length_penalty x bin layout on patterns, text and noise, against dense models",
    base={
        "model.length": "learned",
        "data.corpus": "mixture",
        "train.batch_size": 24,  # rows of one length are computed together: a third of each kind
        "train.eval_windows": 96,
        "train.speed_rows": 96,  # with 24, passes of short rows cost mostly what a pass costs
    },
    space=suggest,
    grid=suggest_grid,
    first=GUIDE_PRESETS,
    rivals=dense_depths,
    objectives=(
        Objective(column="final_val_loss_nats", direction="minimize"),
        Objective(column="speedup_measured", direction="maximize"),
    ),
    sampler="qmc",  # for the reason given in sweeps/act.py
    presets={
        "smoke": Preset(
            trials=4,
            overrides={
                **SMOKE,
                "train.batch_size": 6,
                "train.eval_windows": 18,
                "train.speed_rows": 18,
            },
        ),
        "small": Preset(trials=12, overrides={"train.steps": 400}),
        "full": Preset(trials=30, overrides={"train.steps": 2000}, sampler="grid"),
    },
)
