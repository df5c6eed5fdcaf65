"""Ray's schedulers, which compare validation loss at equal tokens, never at equal reports."""

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from bkray.config import TrialConfig

_KEEP_ONE_IN = 3
"""Of ASHA: a third of the trials passes each rung."""
_BRACKETS = 3
"""Of HyperBand: from pruning at the first evaluation to hardly ever."""
_MEDIAN_OF = 3
"""Trials the median rule must have seen."""


def scheduler(name: str, config: TrialConfig, prune: Callable[[str, str], None]) -> Any:
    """Return the scheduler called ``name``, one of ``schedulers.SCHEDULERS``.

    Args:
        config: says how far trials go, and how often they are evaluated.
        prune: asks the trial of a Tune id to end, and takes the reason.
    """
    if name == "none":
        return FIFOScheduler()
    per_step = config.train.batch_size * config.model.n_seq
    grace_tokens = min(config.train.eval_every, config.train.steps) * per_step
    shared = {"time_attr": "tokens", "metric": "val_loss_nats", "mode": "min"}
    if name == "median":
        judge = MedianStoppingRule(
            grace_period=grace_tokens, min_samples_required=_MEDIAN_OF, **shared
        )
    else:
        judge = AsyncHyperBandScheduler(
            max_t=config.train.steps * per_step,
            grace_period=grace_tokens,
            reduction_factor=_KEEP_ONE_IN,
            brackets=_BRACKETS if name == "hyperband" else 1,
            stop_last_trials=False,
            **shared,
        )
    return _Asking(judge, name, prune)


class _Asking(FIFOScheduler):  # type: ignore[misc]  # ray is untyped
    """Lets another scheduler judge, but asks a trial to end instead of cutting it off.

    Only STOP counts, and only before the last step: the median rule would also pause a trial when
    others wait for their turn.
    """

    def __init__(self, judge: Any, label: str, prune: Callable[[str, str], None]) -> None:
        super().__init__()
        self._judge = judge
        self._label = label
        self._prune = prune
        self._asked: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if trial.trial_id not in self._asked:
            said = self._judge.on_trial_result(tune_controller, trial, result)
            if said == TrialScheduler.STOP and not result["complete"]:
                self._asked.add(trial.trial_id)
                self._prune(trial.trial_id, f"{self._label} at step {result['step']}")
        return str(TrialScheduler.CONTINUE)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._judge.on_trial_add(tune_controller, trial)

    def on_trial_complete(
        self, tune_controller: Any, trial: Trial, result: dict[str, Any]
    ) -> None:
        self._judge.on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._judge.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._judge.on_trial_remove(tune_controller, trial)
