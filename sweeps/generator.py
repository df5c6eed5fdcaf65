"""The sequence generator: training length by latent size by upsampler, and what is lost by it.

Run it with ``bkray sweep generator --preset small``, on another spectrum with
``data.spectrum=0``, on embeddings of your own with ``data.embeddings=PATH``. Trials of one seed
have the same rows and differ in what was chosen alone, so ``bkray show`` can say which training
length is the shortest that loses nothing downstream.
"""

from bkray.sweep import Objective, Preset, Sweep
from search_spaces.generator import BY_LENGTH, suggest

SWEEP = Sweep(
    name="generator",
    overview="a generator trained at 4 to 64 frames: variance kept, and accuracy downstream",
    base={
        "generator.training_sequence_length": 32,
        "data.embeddings": "spectra",
        "train.batch_size": 32,
        "optimizer.lr": 2e-3,
    },
    space=suggest,
    first=BY_LENGTH,
    objectives=(
        Objective(column="explained_variance", direction="maximize"),
        Objective(column="downstream_accuracy", direction="maximize"),
    ),
    sampler="qmc",
    presets={
        "smoke": Preset(
            trials=2,
            overrides={
                "data.n_frames": 128,
                "data.n_channels": 8,
                "data.n_per_class": 16,
                "generator.hidden_dim": 32,
                "generator.synthetic_per_class": 8,
                "generator.kl_warmup_steps": 10,
                "train.steps": 20,
                "train.eval_every": 10,
                "train.checkpoint_every": 10,
                "optimizer.warmup_steps": 4,
            },
        ),
        "small": Preset(
            trials=len(BY_LENGTH),
            seeds=8,
            overrides={
                "data.n_channels": 16,
                "data.n_per_class": 192,
                "generator.hidden_dim": 256,
                "train.steps": 400,
                "train.eval_every": 200,
                "train.checkpoint_every": 400,
            },
        ),
        "full": Preset(
            trials=30,
            seeds=8,
            sampler="grid",
            overrides={
                "train.steps": 4000,
                "train.eval_every": 500,
                "train.checkpoint_every": 500,
            },
        ),
    },
)
