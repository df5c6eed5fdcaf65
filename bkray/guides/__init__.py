"""The names of the public ResNet-BK guides, over the parts of bkray: see docs/guides.md."""

from bkray.guides.act import ACTLanguageModel as ACTLanguageModel
from bkray.guides.act import AdaptiveResNetBKBlock as AdaptiveResNetBKBlock
from bkray.guides.exits import EarlyExitLanguageModel as EarlyExitLanguageModel
from bkray.guides.length import AdaptiveSequenceLengthWrapper as AdaptiveSequenceLengthWrapper
from bkray.guides.length_predictor import SequenceLengthPredictor as SequenceLengthPredictor
from bkray.guides.length_trainer import (
    LearnedSequenceLengthTrainer as LearnedSequenceLengthTrainer,
)
from bkray.guides.standard import LanguageModel as LanguageModel
from bkray.guides.standard import MoEResNetBKLayer as MoEResNetBKLayer
from bkray.guides.trainer import ACTTrainer as ACTTrainer
from bkray.stability import GradientNormTracker as GradientNormTracker
from bkray.stability import LossSpikeDetector as LossSpikeDetector
