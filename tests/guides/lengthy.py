"""Small models of the guides with learned length around them."""

from typing import Any

import torch
from guided import D, N, V, tokens, uneven
from torch import nn

from bkray.guides import AdaptiveSequenceLengthWrapper, EarlyExitLanguageModel, LanguageModel

BASES = ["standard", "act", "exit"]


def base_named(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "act":
        return uneven(dropout_p=0.0)
    if name == "exit":
        return EarlyExitLanguageModel(V, D, 3, N, dropout_p=0.0, confidence_threshold=0.06)
    return LanguageModel(V, D, 3, N, dropout_p=0.0)


def wrapped(name: str = "standard", **knobs: Any) -> AdaptiveSequenceLengthWrapper:
    """Return a wrapped model in float64 and evaluation mode that gives rows unlike lengths."""
    model = AdaptiveSequenceLengthWrapper(
        base_named(name), **{"max_seq_len": N, "num_length_bins": 4, **knobs}
    )
    choose_unevenly(model)
    return model.double().eval()


def choose_unevenly(model: AdaptiveSequenceLengthWrapper) -> None:
    torch.manual_seed(1)
    predictor = model.length_predictor.predictor
    nn.init.normal_(predictor.up.weight, std=5.0)
    nn.init.normal_(predictor.down.weight, std=5.0)
    with torch.no_grad():  # no bin is better than another for all rows
        predictor.down.bias.sub_(predictor(model.language_model.embed(tokens(48))).mean(0))
