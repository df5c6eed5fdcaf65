"""Sizes of a generator, told before it is built."""

import subprocess
import sys
from typing import Any

import pytest

from benchmarks.generator_memory import Setup, estimated, in_a_process
from bkray.errors import ConfigError
from bkray.nn.vae import VAEGenerator
from bkray.ops.generator_sizes import (
    GeneratorShape,
    generation_memory,
    n_parameters,
    require_room,
    training_memory,
)

GUIDES = {"input_dim": 768, "hidden_dim": 1024, "latent_dim": 256}


@pytest.mark.parametrize("mixer", ["flat", "bk"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("n_classes", [None, 5])
@pytest.mark.parametrize("length", [1, 7])
def test_the_parameters_are_counted_exactly(
    mixer: Any, learned: bool, n_classes: int | None, length: int
) -> None:
    sizes = {"input_dim": 11, "hidden_dim": 6, "latent_dim": 3, "training_sequence_length": length}
    model = VAEGenerator(
        **sizes,
        mixer=mixer,
        use_learned_upsampling=learned,
        use_conditioned_vae=n_classes is not None,
        n_classes=n_classes,
    )
    shape = GeneratorShape(**sizes, mixer=mixer, learned_upsampling=learned, n_classes=n_classes)
    assert n_parameters(shape) == sum(p.numel() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "setup",
    [
        Setup({"training_sequence_length": 16, "hidden_dim": 256}, 40, 900),
        Setup(
            {"training_sequence_length": 24, "hidden_dim": 320, "learned_upsampling": True},
            20,
            500,
        ),
        Setup({"training_sequence_length": 48, "hidden_dim": 320, "mixer": "bk"}, 32, 400),
    ],
)
def test_the_estimate_is_within_a_tenth_of_what_a_fresh_process_takes(setup: Setup) -> None:
    for phase, taken in in_a_process(setup).items():
        assert abs(estimated(setup, phase) / taken - 1) < 0.1, phase


def test_more_of_anything_takes_more_memory() -> None:
    def total(n_rows: int = 16, n_frames: int = 1214, **knobs: Any) -> int:
        shape = GeneratorShape(**{**GUIDES, **knobs})
        trained = training_memory(shape, batch_size=n_rows, n_frames=n_frames)
        drawn = generation_memory(shape, n_rows=n_rows, n_frames=n_frames)
        assert drawn.total < trained.total
        assert min(trained.activations, drawn.activations, trained.batches) >= 0
        return trained.total

    for mixer in ("flat", "bk"):
        for knobs in (
            {"n_rows": 64},
            {"n_frames": 4000},
            {"hidden_dim": 2048},
            {"latent_dim": 512},
            {"learned_upsampling": True},
        ):
            assert total(mixer=mixer, **knobs) > total(mixer=mixer), (mixer, knobs)
    lengths = [total(training_sequence_length=n) for n in (4, 8, 16, 32, 64, 1214)]
    assert lengths == sorted(lengths)


def test_a_whole_row_at_once_is_refused_on_a_small_box_with_the_estimate() -> None:
    whole = GeneratorShape(**GUIDES, training_sequence_length=1214)
    assert n_parameters(whole) == 1_911_178_240
    with pytest.raises(ConfigError) as refused:
        require_room(whole, batch_size=16, n_frames=1214, available_bytes=16 * 2**30)
    said = str(refused.value)
    assert "1,911,178,240 parameters" in said
    assert "28.65 GiB" in said and "16.00 GiB are free" in said
    assert "optimizer 14.24 GiB" in said and "gradients 7.12 GiB" in said
    small = GeneratorShape(**GUIDES)
    room = require_room(small, batch_size=16, n_frames=1214, available_bytes=16 * 2**30)
    assert room.total == training_memory(small, batch_size=16, n_frames=1214).total


def test_sizes_are_told_without_torch() -> None:
    words = (
        "import sys, bkray.ops.generator_sizes, bkray.ops.pooling; print('torch' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "False"
