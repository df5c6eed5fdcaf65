"""Models and texts small enough to test with. Letters: B batch, N sites, V vocabulary."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bkray.config import TrialConfig
from bkray.nn.act import HaltingUnit
from bkray.nn.build import language_model
from bkray.nn.exits import ExitDepth
from bkray.nn.lm import LanguageModel
from bkray.nn.sparsity import SparseDepth
from bkray.overrides import build

VOCABULARY = 11
STOP, GO = 0, 1
"""Tokens at which a model ``steered`` by hand stops as soon as it can, and never."""

MIXERS: dict[str, dict[str, Any]] = {
    "bk": {"model.mixer": "bk", "model.n_heads": 4, "model.n_values": 2},
    "attention": {"model.mixer": "attention", "model.n_heads": 2},
    "linear_recurrence": {"model.mixer": "linear_recurrence"},
    "mamba": {"model.mixer": "mamba", "model.d_state": 3},
}


def tiny_config(mixer: str = "linear_recurrence", **knobs: Any) -> TrialConfig:
    """Return a config of three layers of width 16; ``knobs`` are last parts of config paths."""
    size = {"model.d_model": 16, "model.n_layers": 3, "model.n_seq": 16, "model.d_hidden": 24}
    return build({**size, **MIXERS[mixer], **knobs})


def tiny_model(
    mixer: str = "linear_recurrence",
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **knobs: Any,
) -> LanguageModel:
    """Return a small language model, in float64 unless told otherwise."""
    torch.manual_seed(seed)
    return language_model(tiny_config(mixer, **knobs).model, VOCABULARY).to(dtype)


def random_tokens(n_rows: int, n_sites: int, seed: int = 0) -> Tensor:
    """Return tokens (B, N) below ``VOCABULARY``."""
    return torch.randint(
        VOCABULARY, (n_rows, n_sites), generator=torch.Generator().manual_seed(seed)
    )


def steer(model: LanguageModel) -> None:
    """Let the depth depend strongly on the token: ``STOP`` stops, ``GO`` never, others vary.

    Channel 0 of the embedding says when to stop, and whoever decides that reads it.
    """
    halts = any(isinstance(part, HaltingUnit) for part in model.modules())
    with torch.no_grad():
        wish = model.embedding.weight[:, 0]
        wish.copy_((2.0 if halts else 0.2) * torch.linspace(-1, 1, len(wish)))
        wish[STOP], wish[GO] = 30.0, -30.0
        if not halts:  # no unit adds up wishes from layer to layer: they grow by themselves
            for name, parameter in model.blocks.named_parameters():
                if name.endswith("down.bias"):
                    parameter[0] += 0.3
        for part in model.modules():
            if isinstance(part, HaltingUnit):
                _steer_halting(part)
            elif isinstance(part, SparseDepth):
                for scorer in part.scorers:
                    nn.init.zeros_(scorer.bias)
                    scorer.weight[0, 0] = -1.0
            elif isinstance(part, ExitDepth):
                for head in [head[1] for head in part.heads] or [model.head]:
                    head.weight[:, 0] = 0.0
                    head.weight[0, 0] = 3.0  # who wishes to stop is sure that 0 comes next


def _steer_halting(unit: HaltingUnit) -> None:
    nn.init.zeros_(unit.up.weight)
    nn.init.zeros_(unit.up.bias)
    nn.init.zeros_(unit.down.weight)
    unit.up.weight[0, 0] = unit.up.weight[1, 1] = 1.0
    unit.down.weight[0, 0], unit.down.weight[0, 1] = 2.0, 1.0
    nn.init.constant_(unit.down.bias, -1.0)


def uneven_rows(n_sites: int) -> Tensor:
    """Return tokens of four rows: one that stops at once, one that never does, two mixed."""
    mixed = random_tokens(2, n_sites, seed=5)
    return torch.cat([torch.full((1, n_sites), STOP), torch.full((1, n_sites), GO), mixed])


def write_text(path: Path, seed: int, n_words: int = 8000) -> Path:
    """Write ``n_words`` words of a small language with a grammar of its own."""
    choose = random.Random(seed)
    words = ["".join(choose.choices("abcdefgh", k=choose.randint(2, 7))) for _ in range(40)]
    follows: Mapping[str, list[str]] = {word: choose.sample(words, 3) for word in words}
    said = [words[0]]
    while len(said) < n_words:
        said.append(choose.choice(follows[said[-1]]))
    path.write_text(" ".join(said) + "\n", encoding="utf-8")
    return path
