"""Schedulers by name. They compare validation loss at equal tokens, never at equal reports."""

from typing import Any

from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.sweep import Sweep

SCHEDULERS = ("none", "asha", "hyperband", "median")

_KEEP_ONE_IN = 3
"""Of ASHA: a third of the trials passes each rung."""
_BRACKETS = 3
"""Of HyperBand: from pruning at the first evaluation to hardly ever."""
_MEDIAN_OF = 3
"""Trials the median rule must have seen."""


def choose(name: str | None, sweep: Sweep, *, local: bool) -> str:
    """Return the scheduler of a sweep: what was asked for, else its default.

    With several objectives the default is ``none``: pruning on loss alone would end the fast
    trials that the front exists to show.

    Raises:
        ConfigError: an unknown name, or pruning without ray.
    """
    if name is None:
        return "asha" if len(sweep.objectives) == 1 and not local else "none"
    if name not in SCHEDULERS:
        raise ConfigError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {name!r}")
    if local and name != "none":
        raise ConfigError(
            f"--local runs without ray, which brings scheduler={name}: use --scheduler none"
        )
    return name


def scheduler(name: str, config: TrialConfig) -> Any:
    """Return Tune's scheduler of that name, or ``None``; ``config`` says how far trials go."""
    if name == "none":
        return None
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

    per_step = config.train.batch_size * config.model.n_seq
    grace_tokens = min(config.train.eval_every, config.train.steps) * per_step
    shared = {"time_attr": "tokens", "metric": "val_loss_nats", "mode": "min"}
    if name == "median":
        return MedianStoppingRule(
            grace_period=grace_tokens, min_samples_required=_MEDIAN_OF, **shared
        )
    return AsyncHyperBandScheduler(
        max_t=config.train.steps * per_step,
        grace_period=grace_tokens,
        reduction_factor=_KEEP_ONE_IN,
        brackets=_BRACKETS if name == "hyperband" else 1,
        stop_last_trials=False,
        **shared,
    )
