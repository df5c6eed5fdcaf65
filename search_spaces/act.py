"""Search spaces of adaptive computation time: when a token stops, and what thinking costs."""

from bkray.overrides import Overrides
from bkray.sweep import Trial

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
LAMBDAS = (0.001, 0.005, 0.01, 0.05, 0.1)

GUIDE_PRESETS: tuple[Overrides, ...] = (
    {"model.act_threshold": 0.99, "model.act_lambda": 0.001},
    {"model.act_threshold": 0.95, "model.act_lambda": 0.01},
    {"model.act_threshold": 0.80, "model.act_lambda": 0.1},
)
"""The guides' careful, balanced and fast settings."""


def suggest(trial: Trial) -> Overrides:
    """Ask for any threshold and cost between the ends of the guides' grid."""
    trial.suggest_float("model.act_threshold", THRESHOLDS[0], THRESHOLDS[-1])
    trial.suggest_float("model.act_lambda", LAMBDAS[0], LAMBDAS[-1], log=True)
    return {}


def suggest_cost(trial: Trial) -> Overrides:
    """Ask for the cost alone; the threshold is then swept from the checkpoints."""
    trial.suggest_float("model.act_lambda", LAMBDAS[0], LAMBDAS[-1], log=True)
    return {}


def suggest_cost_grid(trial: Trial) -> Overrides:
    """Ask for one of the guides' 5 costs."""
    trial.suggest_categorical("model.act_lambda", LAMBDAS)
    return {}


def suggest_grid(trial: Trial) -> Overrides:
    """Ask for a point of the guides' grid of 6 thresholds by 5 costs."""
    trial.suggest_categorical("model.act_threshold", THRESHOLDS)
    trial.suggest_categorical("model.act_lambda", LAMBDAS)
    return {}
