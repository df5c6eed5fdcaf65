"""Several small trials on one GPU: how many fit, what each may take, and which need it whole."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bkray import trial
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.events import EvalDone
from bkray.overrides import build, flatten
from bkray.rungs import rungs

CONTEXT_BYTES = 600 * 2**20
"""What CUDA takes for each process besides torch's own memory: an upper estimate."""
MARGIN = 1.2
"""Of a trial's share over its measured peak: memory fragments."""
_GRAIN = 10_000
"""Ray counts GPUs in ten-thousandths."""
_STEPS_PER_RUNG = 2
"""The optimizer's state is there from the second step on."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What one trial of ``config`` took at most, and what its GPU has, in bytes."""

    config: TrialConfig
    peak_bytes: int
    total_bytes: int

    @property
    def per_gpu(self) -> int:
        """How many such trials one GPU holds, 1 or more."""
        return fits(self.peak_bytes, self.total_bytes)

    def gpus(self, config: TrialConfig) -> float:
        """Return the share of a trial: that of the probe, or a whole GPU if it may need more."""
        return 1.0 if _may_need_more(config, self.config) else share(self.per_gpu)


Probe = Callable[[TrialConfig], Probed]


def fits(peak_bytes: int, total_bytes: int) -> int:
    """Return how many trials of this peak one GPU holds, 1 or more.

    Each takes ``MARGIN * peak_bytes + CONTEXT_BYTES``.
    """
    return max(1, int(total_bytes / (MARGIN * peak_bytes + CONTEXT_BYTES)))


def share(per_gpu: int) -> float:
    """Return the part of a GPU so that ``per_gpu`` of them are no more than one."""
    return (_GRAIN // per_gpu) / _GRAIN


def cap(gpus: float, total_bytes: int) -> float:
    """Return the part of a GPU's memory that torch may take, in (0, 1], for a share of ``gpus``.

    All shares of one GPU, each with what CUDA takes beside it, are no more than the GPU.

    Raises:
        ConfigError: the share does not even hold what CUDA takes.
    """
    if gpus >= 1:
        return 1.0
    left = gpus - CONTEXT_BYTES / total_bytes
    if left <= 0:
        raise ConfigError(
            f"gpus-per-worker={gpus:g} of {total_bytes / 2**30:.3g} GiB is less than the "
            f"{CONTEXT_BYTES / 2**30:.2g} GiB that CUDA takes for each process: give more"
        )
    return left


def keep_to_share(gpus: float) -> None:
    """Let torch here take no more memory than its share: it fails then, not its neighbour."""
    if 0 < gpus < 1 and torch.cuda.is_available():
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(cap(gpus, total_bytes))


def probe(config: TrialConfig) -> Probed:
    """Train a trial of ``config`` for two steps per length, validate, and see what that took.

    Raises:
        ConfigError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise ConfigError("--gpus-per-worker auto measures on a GPU, but torch sees none here")
    torch.cuda.reset_peak_memory_stats()
    n_steps = _STEPS_PER_RUNG * len(rungs(config))
    short = {"train.steps": n_steps, "train.eval_every": n_steps, "optimizer.warmup_steps": 0}
    for event in trial.run(build({**flatten(config), **short}), None):
        if isinstance(event, EvalDone):
            break
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    return Probed(config, torch.cuda.max_memory_reserved(), total_bytes)


def _may_need_more(config: TrialConfig, probed: TrialConfig) -> bool:
    """Return whether a trial differs from the probe by anything that is not known to be harmless:
    more tokens at once, a larger size, or another choice."""
    if _tokens_at_once(config) > _tokens_at_once(probed):
        return True
    own, its = flatten(config), flatten(probed)
    for name in own.keys() | its.keys():
        mine, theirs = own.get(name), its.get(name)
        if mine == theirs or name in _HARMLESS or name.startswith("optimizer."):
            continue
        if name not in _SIZES or mine is None or theirs is None or mine > theirs:
            return True
    return False


def _tokens_at_once(config: TrialConfig) -> int:
    return max(rung.rows * rung.n_seq for rung in rungs(config))


_SIZES = {
    *("model.d_model", "model.n_layers", "model.n_heads", "model.n_values", "model.d_state"),
    *("model.semiseparable_rank", "model.expand", "model.d_hidden", "model.n_experts"),
    *("model.top_k", "model.act_threshold", "model.dropout", "data.vocab_size"),
    *("generator.latent_dim", "generator.hidden_dim", "generator.output_sequence_length"),
}
"""Numbers that memory grows with, or does not shrink with."""
_HARMLESS = {
    *("seed", "arm", "threads", "train.steps", "train.eval_every", "train.checkpoint_every"),
    *("model.act_lambda", "model.halt_lr_factor", "model.exit_weight", "model.balance_weight"),
    *("model.sparsity_lambda", "model.length_penalty"),
    *("generator.kl_weight", "generator.kl_warmup_steps"),
    *("model.n_seq", "train.batch_size", "train.accumulation"),
    "generator.training_sequence_length",
}
"""Knobs that memory does not depend on, or only by the tokens at once."""
