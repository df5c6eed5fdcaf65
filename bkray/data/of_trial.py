"""What a trial reads of its corpus: batches to train on, windows to validate on.

W windows, N positions.
"""

from torch import Tensor

from bkray.config import TrialConfig
from bkray.data.batches import Batches, validation_windows
from bkray.data.climb import Climb
from bkray.data.shards import Shards
from bkray.rungs import rungs

Pair = tuple[Tensor, Tensor]
"""Inputs and targets."""


def batches(config: TrialConfig, shards: Shards) -> Batches | Climb:
    """Return training batches of each rung; data are drawn anew for each."""
    parts = [
        (
            Batches(
                shards.tokens("train"),
                rung.n_seq,
                rung.batch_size,
                config.seed,
                segment=shards.segment,
            ),
            rung.last_step - rung.first_step + 1,
        )
        for rung in rungs(config)
    ]
    return parts[0][0] if len(parts) == 1 else Climb(parts)


def validation(config: TrialConfig, shards: Shards) -> Pair:
    """Return the validation windows, cut from stretches where the config says so."""
    n_seq, plan = config.model.n_seq, config.train
    stretch = plan.eval_stretch or n_seq
    n_stretches = plan.eval_windows * n_seq // stretch
    inputs_WN, targets_WN = windows(shards, "valid", stretch, n_stretches)
    return inputs_WN.reshape(-1, n_seq), targets_WN.reshape(-1, n_seq)


def windows(shards: Shards, split: str, n_seq: int, n_windows: int) -> Pair:
    """Return inputs and targets, both int64 (W, N), as ``validation_windows`` does."""
    return validation_windows(
        shards.tokens(split), n_seq, n_windows, segment=shards.segment, kinds=shards.kinds
    )
