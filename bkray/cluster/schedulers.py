"""Which rule ends a sweep's trials early; the rules are in ``pruning.py``."""

from bkray.errors import ConfigError
from bkray.sweep import Sweep, no_space, nothing_follows

SCHEDULERS = ("none", "asha", "hyperband", "median")


def choose(name: str | None, sweep: Sweep) -> str:
    """Return the scheduler of a sweep: what was asked for, else its default.

    With several objectives the default is ``none``: pruning on loss alone would end the fast
    trials that the front exists to show. The same where a knob is swept from checkpoints, which
    must be those of whole trainings, and where all trials are rivals, each of which is an answer.

    Raises:
        ConfigError: an unknown name, or a rule for a sweep whose arms follow from others.
    """
    if name is None:
        searched = sweep.space is not no_space and not sweep.at_inference
        return "asha" if searched and len(sweep.objectives) == 1 else "none"
    if sweep.follow is not nothing_follows and name in SCHEDULERS[1:]:
        raise ConfigError(
            f"scheduler={name} would end trials that the sweep {sweep.name} must compare whole: "
            "leave --scheduler out"
        )
    if name not in SCHEDULERS:
        raise ConfigError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {name!r}")
    return name
