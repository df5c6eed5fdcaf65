"""A sequence generator in place of a language model: which one, and what is generated from it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from bkray.config.section import Section

LATENT_DIM, HIDDEN_DIM = 256, 1024
SYNTHETIC_PER_CLASS = 64
KL_WEIGHT = 0.1


class GeneratorConfig(Section):
    """A variational autoencoder that trains at one length and generates at another.

    The knobs act where ``training_sequence_length`` is given; the trial then trains on
    ``data.embeddings`` instead of on text, and has no ``model``. Lengths are in frames.
    """

    training_sequence_length: int | None = Field(None, ge=2)
    """Frames that a sequence is averaged down to, and that encoder and decoder are sized by."""
    output_sequence_length: int | None = Field(None, ge=2)
    """Frames of a generated sequence; ``None`` for as many as the data have."""
    latent_dim: int | None = Field(None, ge=1)
    hidden_dim: int | None = Field(None, ge=1)
    upsampling: Literal["linear", "learned"] | None = None
    """How decoded frames become as many as are asked for."""
    network: Literal["flat", "bk"] | None = None
    """What reads and writes the frames: one dense layer over all of them, or a two-sided BK
    mixer, whose parameters do not grow with the length."""
    conditioned: bool | None = None
    """Whether encoder and decoder are told the class; without it no class can be asked for."""
    augmentation: Literal["off", "masking", "noise", "mixup", "all"] | None = None
    """What training sequences suffer: frames set to zero, noise, or another sequence mixed in."""
    kl_weight: float | None = Field(None, ge=0)
    """Weight of the divergence from the prior in the loss, once warm-up is over: the share of a
    value's variance that is taken for noise."""
    kl_warmup_steps: int | None = Field(None, ge=0)
    """Steps over which that weight grows from zero, in proportion."""
    prior: Literal["standard", "fitted"] | None = None
    """What latents of samples are drawn from: the standard normal that the divergence is from, or
    a Gaussian for each class, fitted in the end to what the encoder writes of training rows."""
    synthetic_per_class: int | None = Field(None, ge=2)
    """Sequences of each class that the downstream classifier is trained on, generated or real."""
    pretrained: str | None = None
    """Checkpoint of another generator of the same sizes, whose weights training begins with."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        chosen = {name: value for name, value in given.items() if value is not None}
        if not chosen:
            return chosen
        if "training_sequence_length" not in chosen:
            name = next(iter(chosen))
            raise ValueError(
                f"generator.{name} does nothing without generator.training_sequence_length: "
                "give 32, or leave it out"
            )
        defaults: dict[str, Any] = {
            "latent_dim": LATENT_DIM,
            "hidden_dim": HIDDEN_DIM,
            "upsampling": "linear",
            "network": "flat",
            "conditioned": True,
            "augmentation": "off",
            "kl_weight": KL_WEIGHT,
            "prior": "fitted",
        }
        weight = chosen.get("kl_weight", KL_WEIGHT)
        if weight == 0 and "kl_warmup_steps" in chosen:
            raise ValueError(
                "generator.kl_warmup_steps does nothing with generator.kl_weight=0: raise the "
                "weight or leave the steps out"
            )
        if weight != 0:
            defaults["kl_warmup_steps"] = 100
        if chosen.get("conditioned", True) in (False, "false"):
            if "synthetic_per_class" in chosen:
                raise ValueError(
                    "generator.synthetic_per_class does nothing with generator.conditioned=false: "
                    "no class can be asked for; leave one of them out"
                )
        else:
            defaults["synthetic_per_class"] = SYNTHETIC_PER_CLASS
        return {**defaults, **chosen}

    @property
    def acts(self) -> bool:
        """Whether the trial trains a generator."""
        return self.training_sequence_length is not None
