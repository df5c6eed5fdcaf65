"""The names of the public ResNet-BK guides, over the parts of bkray: see docs/guides.md."""

from bkray.guides.act import ACTLanguageModel as ACTLanguageModel
from bkray.guides.act import AdaptiveResNetBKBlock as AdaptiveResNetBKBlock
from bkray.guides.exits import EarlyExitLanguageModel as EarlyExitLanguageModel
from bkray.guides.length import AdaptiveSequenceLengthWrapper as AdaptiveSequenceLengthWrapper
from bkray.guides.length_predictor import SequenceLengthPredictor as SequenceLengthPredictor
from bkray.guides.length_trainer import (
    LearnedSequenceLengthTrainer as LearnedSequenceLengthTrainer,
)
from bkray.guides.long_context import LongContextTrainer as LongContextTrainer
from bkray.guides.long_context_metrics import LongContextMetrics as LongContextMetrics
from bkray.guides.long_context_stream import MemoryOptimization as MemoryOptimization
from bkray.guides.long_context_stream import StreamingEvaluator as StreamingEvaluator
from bkray.guides.scattering import BirmanSchwingerCore as BirmanSchwingerCore
from bkray.guides.scattering import ScatteringRouter as ScatteringRouter
from bkray.guides.scattering import SemiseparableMatrix as SemiseparableMatrix
from bkray.guides.standard import LanguageModel as LanguageModel
from bkray.guides.standard import MoEResNetBKLayer as MoEResNetBKLayer
from bkray.guides.trainer import ACTTrainer as ACTTrainer
from bkray.stability import GradientNormTracker as GradientNormTracker
from bkray.stability import LossSpikeDetector as LossSpikeDetector
