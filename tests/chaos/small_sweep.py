"""A user's own sweep file: two knobs, tiny models, an evaluation and a checkpoint every 16 steps.

One objective, so that its trials are pruned unless the command says otherwise.
"""

from bkray.sweep import Objective, Preset, Sweep, Trial


def suggest(trial: Trial) -> dict[str, object]:
    trial.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("model.n_layers", [1, 2])
    return {}


SWEEP = Sweep(
    name="small_sweep",
    space=suggest,
    objectives=(Objective(column="best_val_loss_nats", direction="minimize"),),
    base={
        "model.mixer": "attention",  # nothing to compile
        "model.n_heads": 2,
        "model.d_model": 16,
        "model.n_seq": 32,
        "train.steps": 288,
        "train.batch_size": 4,
        "train.eval_every": 16,
        "train.eval_windows": 4,
        "train.checkpoint_every": 16,
        "optimizer.warmup_steps": 4,
    },
    first=({"optimizer.lr": 0.03, "model.n_layers": 1},),
    sampler="tpe",
    presets={"smoke": Preset(trials=6)},
)
