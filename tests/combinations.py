"""The language models that ship: slots filled in every way that the contract suites hold to.

A combination is mixer, feature, experts, position; ``learned`` before a feature puts learned
length around it.
"""

import itertools
from typing import Any

import torch
from tiny import MIXERS, VOCABULARY, steer, tiny_config
from torch import nn

from bkray.config import ModelConfig
from bkray.nn.build import built_in
from bkray.nn.length import LearnedLength
from bkray.nn.lm import LanguageModel

Combination = tuple[str, str, str, str]

EXPERTS: dict[str, dict[str, Any]] = {
    "one": {},
    "4 top 1": {"n_experts": 4, "top_k": 1},
    "4 top 2": {"n_experts": 4, "top_k": 2},
}
SCATTERED = {"4 scattered": {"n_experts": 4, "router": "scattering"}}
"""With a mixer that has a phase."""
POSITIONS = {mixer: ("none", "learned") for mixer in MIXERS} | {
    "attention": ("none", "learned", "rope")
}
PAIRS = {"multiscale": True, "n_layers": 4}
UNSURE = {"exit_heads": "own", "exit_rule": "entropy"}
FEATURES: dict[str, dict[str, Any]] = {
    "exit": {"depth": "exit"},
    "own exit": {"depth": "exit", **UNSURE},
    "act_exit": {"depth": "act_exit", "exit_threshold": 0.3},
    "own act_exit": {"depth": "act_exit", **UNSURE},
    "sparse": {"sparsity": "learned"},
    "multiscale": PAIRS,
    "multiscale act": {**PAIRS, "depth": "act"},
    "multiscale act each": {**PAIRS, "depth": "act", "act_scales": "each"},
    "multiscale exit": {**PAIRS, "depth": "exit", **UNSURE},
    "multiscale sparse": {**PAIRS, "sparsity": "learned"},
    "scaled mixer": {"mixer_scale": 2},
    "scaled mixer act": {"mixer_scale": 3, "depth": "act"},
}
LOW_RANK: dict[str, dict[str, Any]] = {
    "low rank": {"semiseparable_rank": 3},
    "low rank act": {"semiseparable_rank": 3, "depth": "act"},
}
WITHOUT: dict[str, dict[str, Any]] = {
    "no values": {"n_values": 0},
    "no values act": {"n_values": 0, "depth": "act"},
    "zero energies": {"energies": "zero"},
}
LEARNED = {"length": "learned", "length_list": "5,8,16"}
DEPTHS = {"dense": {}, "act": {"depth": "act"}}
COMBINATIONS: list[Combination] = [
    *(
        (mixer, depth, experts, position)
        for mixer, depth, experts in itertools.product(MIXERS, DEPTHS, EXPERTS)
        for position in POSITIONS[mixer]
    ),
    *(
        (mixer, feature, experts, position)
        for feature in FEATURES
        for mixer, experts, position in (
            ("bk", "one", "none"),
            ("attention", "one", "rope"),
            ("linear_recurrence", "4 top 2", "none"),
            ("mamba", "one", "none"),
        )
    ),
    *(("bk", feature, "one", "none") for feature in LOW_RANK | WITHOUT),
    ("bk", "no values", "4 scattered", "none"),
    *(("bk", feature, "4 scattered", "none") for feature in ("dense", "act", "sparse", "exit")),
    ("bk", "multiscale act", "4 scattered", "none"),
    ("bk", "low rank", "4 scattered", "learned"),
    *(("linear_recurrence", f"learned {feature}", "one", "none") for feature in FEATURES),
    ("linear_recurrence", "learned sparse", "4 top 2", "none"),
]


def config_of(combination: Combination, **further: Any) -> ModelConfig:
    mixer, feature, experts, position = combination
    feature, around = feature.removeprefix("learned "), feature.startswith("learned ")
    knobs = {**(DEPTHS | FEATURES | LOW_RANK | WITHOUT)[feature], **(EXPERTS | SCATTERED)[experts]}
    knobs |= LEARNED if around else {}
    return tiny_config(mixer, position=position, **knobs, **further).model


def combined(combination: Combination, **further: Any) -> LanguageModel | LearnedLength:
    """Return the model of a combination in evaluation mode, every row and token of
    ``uneven_rows`` treated as unlike as can be."""
    torch.manual_seed(0)
    model = built_in(config_of(combination, **further), VOCABULARY).double()
    if isinstance(model, LearnedLength):
        steer_length(model)
    if isinstance(model, LearnedLength) or adapts(combination):
        steer(within(model))
    return model.eval()


@torch.no_grad()
def steer_length(model: LearnedLength) -> None:
    """Let a row of ``STOP`` have the shortest length, one of ``GO`` the longest."""
    up, down = model.predictor.up, model.predictor.down
    for parameter in model.predictor.parameters():
        nn.init.zeros_(parameter)
    up.weight[0, 0], up.weight[1, 0] = 1.0, -1.0  # feature 0: channel 0 of the row's mean
    down.weight[0, 0], down.weight[-1, 1] = 9.0, 9.0
    down.bias[1] = 1.0


def within(model: LanguageModel | LearnedLength) -> LanguageModel:
    """Return the language model that a length may have been put around."""
    return model.model if isinstance(model, LearnedLength) else model


def adapts(combination: Combination) -> bool:
    """Whether tokens go different ways through the layers."""
    return any(word in combination[1] for word in ("act", "exit", "sparse"))
