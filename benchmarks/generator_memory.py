"""Memory of the sequence generator: the estimate beside what a fresh process takes.

    python -m benchmarks.generator_memory

Every set-up is a process of its own: peak resident memory of one batch of samples, and of three
training steps, above what the process held before, in MiB, with freed memory given back at once.
"""

import json
import subprocess
import sys
from typing import Any, NamedTuple

import torch

from bkray.config import OptimizerConfig
from bkray.nn.vae import VAEGenerator, vae_loss
from bkray.ops.generator_sizes import (
    GeneratorShape,
    generation_memory,
    n_parameters,
    training_memory,
)
from bkray.ops.memory import freed_memory_given_back
from bkray.train.measure import forget_peak_memory, peak_memory_mib
from bkray.train.optim import adamw

MIB = 2**20
CPU = torch.device("cpu")
STEPS = 3


class Setup(NamedTuple):
    """A generator and its batches of ``n_rows`` rows of ``n_frames``."""

    shape: dict[str, Any]
    n_rows: int
    n_frames: int


SETUPS = [
    *(Setup({"training_sequence_length": n}, 16, 1214) for n in (4, 8, 16, 32, 64)),
    Setup({"training_sequence_length": 32, "hidden_dim": 256}, 64, 1214),
    Setup({"training_sequence_length": 32, "learned_upsampling": True}, 16, 1214),
    Setup({"learned_upsampling": True, "hidden_dim": 300, "input_dim": 500}, 48, 700),
    Setup(
        {"training_sequence_length": 200, "learned_upsampling": True, "hidden_dim": 128}, 32, 400
    ),
    Setup({"training_sequence_length": 32, "mixer": "bk"}, 16, 1214),
    Setup({"training_sequence_length": 64, "mixer": "bk", "hidden_dim": 256}, 64, 256),
    Setup({"training_sequence_length": 256, "mixer": "bk", "hidden_dim": 512}, 16, 256),
    Setup({"training_sequence_length": 96, "mixer": "bk", "hidden_dim": 384}, 40, 960),
    Setup(
        {
            "training_sequence_length": 64,
            "mixer": "bk",
            "learned_upsampling": True,
            "n_classes": 8,
        },
        32,
        1214,
    ),
]


def main() -> None:
    """Print one line per set-up and phase; with arguments, measure in this process."""
    if len(sys.argv) > 1:
        print(json.dumps(measured(Setup(*json.loads(sys.argv[1])))))
        return
    print(f"{'parameters':>12} {'phase':10} {'estimate':>9} {'measured':>9} {'ratio':>6}  set-up")
    for setup in SETUPS:
        for phase, taken in in_a_process(setup).items():
            expected = estimated(setup, phase)
            said = ", ".join(f"{name}={value}" for name, value in setup.shape.items())
            print(
                f"{n_parameters(GeneratorShape(**setup.shape)):12,} {phase:10} {expected:9.1f} "
                f"{taken:9.1f} {expected / taken:6.3f}  {said}; {setup.n_rows} x {setup.n_frames}",
                flush=True,
            )


def estimated(setup: Setup, phase: str) -> float:
    """Return the estimate in MiB."""
    shape = GeneratorShape(**setup.shape)
    if phase == "training":
        memory = training_memory(shape, batch_size=setup.n_rows, n_frames=setup.n_frames)
    else:
        memory = generation_memory(shape, n_rows=setup.n_rows, n_frames=setup.n_frames)
    return memory.total / MIB


def in_a_process(setup: Setup) -> dict[str, float]:
    """Return what a fresh process measured of each phase, in MiB."""
    words = [sys.executable, "-m", "benchmarks.generator_memory", json.dumps(setup)]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    taken: dict[str, float] = json.loads(ended.stdout)
    return taken


def measured(setup: Setup) -> dict[str, float]:
    """Return the peak of each phase above what this process holds before, in MiB."""
    torch.set_num_threads(1)
    tiny = {**setup.shape, "input_dim": 8, "hidden_dim": 16, "latent_dim": 4}
    run(tiny, 2, setup.n_frames, "training")  # what is loaded at first use is no memory of a model
    taken = {}
    with freed_memory_given_back():
        for phase in ("generation", "training"):
            forget_peak_memory(CPU)
            before = peak_memory_mib(CPU)
            run(setup.shape, setup.n_rows, setup.n_frames, phase)
            taken[phase] = peak_memory_mib(CPU) - before
    return taken


def run(shape: dict[str, Any], n_rows: int, n_frames: int, phase: str) -> None:
    """Train three steps, or draw one batch of samples."""
    knobs = dict(shape)
    learned, n_classes = knobs.pop("learned_upsampling", False), knobs.pop("n_classes", None)
    conditioned = n_classes is not None
    model = VAEGenerator(
        **knobs,
        use_learned_upsampling=learned,
        use_conditioned_vae=conditioned,
        n_classes=n_classes,
    )
    labels = torch.arange(n_rows) % n_classes if conditioned else None
    if phase == "generation":
        model.sample(n_rows, n_frames, labels)
        return
    optimizer = adamw(model, OptimizerConfig())
    for _ in range(STEPS):
        x_BLD = torch.randn(n_rows, n_frames, model.input_dim)
        optimizer.zero_grad(set_to_none=True)
        said = model(x_BLD, labels, full_length=learned)
        loss = vae_loss(said, 1.0, full_target_BLD=x_BLD if learned else None)
        torch.autograd.backward(loss.total_nats)
        del said, loss
        optimizer.step()


if __name__ == "__main__":
    main()
