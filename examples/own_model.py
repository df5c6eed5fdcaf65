"""A model of your own: causal convolutions. It needs ``build(config, vocab_size)`` and ``causal``.

    bkray train model=examples.own_model:build options.width=32 train.steps=50

Letters: B batch, N sites, C channels, V vocabulary.
"""

from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from bkray import TrialConfig
from bkray.nn.lm import Prediction

KERNEL = 4


class ConvolutionModel(nn.Module):
    """Each layer sees ``KERNEL`` tokens back; padding on the left alone keeps it causal."""

    causal = True

    def __init__(self, vocab_size: int, width: int, n_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, KERNEL) for _ in range(n_layers))
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens_BN: Tensor) -> Prediction:
        hidden_BCN = self.embedding(tokens_BN).transpose(1, 2)
        for layer in self.layers:
            hidden_BCN = hidden_BCN + gelu(layer(pad(hidden_BCN, (KERNEL - 1, 0))))
        return Prediction(self.head(hidden_BCN.transpose(1, 2)))


def build(config: TrialConfig, vocab_size: int) -> nn.Module:
    """Return the model; its own knobs are ``model.options.width`` and ``model.options.layers``."""
    options = config.model.options or {}
    width, n_layers = int(options.get("width", 64)), int(options.get("layers", 2))
    return ConvolutionModel(vocab_size, width, n_layers)
