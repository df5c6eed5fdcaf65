"""What a trial reads of its corpus: batches to train on, windows to validate on.

W windows, N positions.
"""

from torch import Tensor
from torch.nn.functional import pad

from bkray.config import TrialConfig
from bkray.data.batches import Batches, validation_windows
from bkray.data.climb import Climb
from bkray.data.shards import Shards
from bkray.errors import DataError
from bkray.rungs import rungs

LEAST_ROWS = 4
"""Validation rows without which nothing can be said of a length: their halves are compared."""

Pair = tuple[Tensor, Tensor]
"""Inputs and targets."""

UNSCORED = -100
"""Target of a site that fills up a row: no token, and without a loss."""


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
    """Return the validation windows, cut from stretches where the config says so.

    Such trials score the same tokens at any ``model.n_seq``: the last row of a stretch that it
    does not divide is filled up behind it with sites that are ``UNSCORED``.

    Raises:
        DataError: too little text for windows of any length that is evaluated at.
    """
    for n_eval in config.mismatch.evaluated:
        n_fitting = len(windows(shards, "valid", n_eval, LEAST_ROWS)[0])
        if n_fitting < LEAST_ROWS:
            raise DataError(
                f"too little text: the valid split has {n_fitting} rows of mismatch.lengths="
                f"{n_eval} tokens, and {LEAST_ROWS} are needed; give more text or shorter lengths"
            )
    n_seq, plan = config.model.n_seq, config.train
    stretch = plan.eval_stretch or n_seq
    n_stretches = plan.eval_windows // -(-stretch // n_seq)
    return cut(windows(shards, "valid", stretch, n_stretches), n_seq)


def cut(pair: Pair, n_seq: int) -> Pair:
    """Return windows cut into rows of ``n_seq`` sites, the last one of each filled up."""
    inputs_WN, targets_WN = pair
    n_more = -inputs_WN.shape[1] % n_seq
    filled = pad(inputs_WN, (0, n_more)), pad(targets_WN, (0, n_more), value=UNSCORED)
    return filled[0].reshape(-1, n_seq), filled[1].reshape(-1, n_seq)


def windows(shards: Shards, split: str, n_seq: int, n_windows: int) -> Pair:
    """Return inputs and targets, both int64 (W, N), as ``validation_windows`` does."""
    return validation_windows(
        shards.tokens(split), n_seq, n_windows, segment=shards.segment, kinds=shards.kinds
    )
