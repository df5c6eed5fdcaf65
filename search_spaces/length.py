"""Search spaces of learned length: what a site costs, and at which lengths a row may be cut."""

from bkray.overrides import Overrides
from bkray.sweep import Trial

PENALTIES = (0.005, 0.01, 0.02, 0.1, 0.5)
LAYOUTS = ("linear", "exponential")
N_BINS = (4, 8, 16)

GUIDE_PRESETS: tuple[Overrides, ...] = tuple(
    {"model.length_penalty": penalty, "model.length_layout": "linear", "model.length_bins": 8}
    for penalty in PENALTIES[:3]
)
"""The guides' penalties with their bins."""


def suggest(trial: Trial) -> Overrides:
    """Ask for any penalty from the guides' lowest to half a nat a token, and for the bins."""
    trial.suggest_float("model.length_penalty", PENALTIES[0], PENALTIES[-1], log=True)
    _suggest_bins(trial)
    return {}


def suggest_grid(trial: Trial) -> Overrides:
    """Ask for a point of 5 penalties by 2 layouts by 3 numbers of bins."""
    trial.suggest_categorical("model.length_penalty", PENALTIES)
    _suggest_bins(trial)
    return {}


def _suggest_bins(trial: Trial) -> None:
    trial.suggest_categorical("model.length_layout", LAYOUTS)
    trial.suggest_categorical("model.length_bins", N_BINS)
