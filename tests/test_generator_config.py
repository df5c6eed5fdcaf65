"""A generator's trial has no knob of language models, and those have none of generators."""

from typing import Any

import pytest
from generators import TINY, tiny_generator

from bkray.errors import ConfigError
from bkray.overrides import build, flatten, row_length, trial_id


def test_what_does_nothing_is_not_part_of_a_generators_identity() -> None:
    flat = flatten(tiny_generator())
    idle = ("model.", "ladder.", "mismatch.", "data.corpus", "data.tokenizer", "train.monitor")
    assert not [name for name in flat if name.startswith(idle)]
    assert build(flat) == tiny_generator()
    assert row_length(flat) == 8 == tiny_generator().n_seq


def test_language_models_keep_the_identity_they_had() -> None:
    assert not [name for name in flatten(build({})) if "generator" in name or "embed" in name]
    assert trial_id(build({}), "x", "y") == "05fbc4131643"
    assert row_length(flatten(build({}))) == 128


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({**TINY, "model.d_model": 8}, r"model.d_model=8 does nothing in a generator's trial"),
        ({**TINY, "ladder.lengths": "4,8"}, r"ladder.lengths=4,8 does nothing"),
        ({**TINY, "mismatch.items": 8}, r"mismatch.items=8 does nothing"),
        ({**TINY, "data.corpus": "stdlib"}, r"data.corpus=stdlib does nothing"),
        ({**TINY, "train.eval_windows": 8}, r"train.eval_windows=8 does nothing"),
        ({"generator.latent_dim": 8}, r"generator.latent_dim does nothing without"),
        ({"data.embeddings": "x.npy"}, r"data.embeddings=x.npy does nothing without a generator"),
        ({"data.spectrum": 1}, r"data.spectrum does nothing with data.embeddings=None"),
        (
            {"generator.training_sequence_length": 4, "data.embeddings": "x.npy", "spectrum": 1},
            r"data.spectrum does nothing with data.embeddings=x.npy",
        ),
        ({**TINY, "generator.kl_weight": 0}, r"kl_warmup_steps does nothing with .*kl_weight=0"),
        ({**TINY, "conditioned": False}, r"synthetic_per_class does nothing with .*conditioned"),
        ({**TINY, "training_sequence_length": 1}, r"greater than or equal to 2"),
        ({**TINY, "data.n_classes": 3}, r"data.n_classes"),
    ],
)
def test_a_knob_that_does_nothing_is_an_error_that_names_it(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        build(given)
