"""The configuration of one trial: frozen, strict, typed, and the same on every carrier.

A config is built from *overrides*, a flat mapping from config paths to values
(``{"model.d_model": 128}``). A knob of the model that does nothing in the model at hand is
``None``, and setting it is an error, so two equal configs always mean the same trial.
"""

from bkray.config.data import MADE, RECALL_DISTANCE, SPECTRA, DataConfig
from bkray.config.generator import GeneratorConfig
from bkray.config.ladder import LadderConfig
from bkray.config.mismatch import STRATEGIES, MismatchConfig
from bkray.config.model import MixerName, ModelConfig
from bkray.config.training import OptimizerConfig, TrainConfig
from bkray.config.trial import TrialConfig

__all__ = (
    "MADE",
    "RECALL_DISTANCE",
    "SPECTRA",
    "STRATEGIES",
    "DataConfig",
    "GeneratorConfig",
    "LadderConfig",
    "MismatchConfig",
    "MixerName",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "TrialConfig",
)
