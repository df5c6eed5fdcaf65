"""A sweep of your own over a model of your own.

bkray sweep examples/own_sweep.py --preset smoke
"""

from bkray import Objective, Preset, Sweep
from bkray.overrides import Overrides
from bkray.sweep import Trial


def suggest(trial: Trial) -> Overrides:
    """Names are config paths; ask only what the answers before make sense of."""
    layers = trial.suggest_int("model.options.layers", 1, 3)
    trial.suggest_float("optimizer.lr", 1e-3, 1e-2, log=True)
    # Deeper models get narrower, so that all have about the same size.
    return {"model.options.width": {1: 64, 2: 48, 3: 40}[layers]}


SWEEP = Sweep(
    name="own",
    overview="depth and learning rate of a small convolution model",
    base={"model.build": "own_model:build", "model.n_seq": 64},
    space=suggest,
    objectives=(Objective(column="final_val_loss_nats", direction="minimize"),),
    presets={
        "smoke": Preset(
            trials=3,
            overrides={"train.steps": 20, "train.eval_every": 10, "train.eval_windows": 8},
        ),
        "small": Preset(trials=12, overrides={"train.steps": 300}),
    },
)
