"""Search spaces of the sequence generator: how short it trains, and what it has to say."""

from bkray.overrides import Overrides
from bkray.sweep import Trial

LENGTHS = (4, 8, 16, 32, 64)
LATENTS = (32, 64, 256)
UPSAMPLERS = ("linear", "learned")

BY_LENGTH: tuple[Overrides, ...] = tuple(
    {
        "generator.training_sequence_length": length,
        "generator.latent_dim": 64,
        "generator.upsampling": "linear",
    }
    for length in LENGTHS
)
"""Generators that differ in their training length alone."""


def suggest(trial: Trial) -> Overrides:
    """Ask for a point of 5 training lengths by 3 latent sizes by 2 upsamplers."""
    trial.suggest_categorical("generator.training_sequence_length", LENGTHS)
    trial.suggest_categorical("generator.latent_dim", LATENTS)
    trial.suggest_categorical("generator.upsampling", UPSAMPLERS)
    return {}
