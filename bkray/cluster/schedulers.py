"""Which rule ends a sweep's trials early; the rules are in ``pruning.py``."""

from bkray.errors import ConfigError
from bkray.sweep import Sweep

SCHEDULERS = ("none", "asha", "hyperband", "median")


def choose(name: str | None, sweep: Sweep) -> str:
    """Return the scheduler of a sweep: what was asked for, else its default.

    With several objectives the default is ``none``: pruning on loss alone would end the fast
    trials that the front exists to show. The same where a knob is swept from checkpoints, which
    must be those of whole trainings.

    Raises:
        ConfigError: an unknown name.
    """
    if name is None:
        return "asha" if len(sweep.objectives) == 1 and not sweep.at_inference else "none"
    if name not in SCHEDULERS:
        raise ConfigError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {name!r}")
    return name
