"""Which scheduler a sweep runs under. Ray's own are in ``tune_scheduler.py``."""

from bkray.errors import ConfigError
from bkray.sweep import Sweep

SCHEDULERS = ("none", "asha", "hyperband", "median")


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
