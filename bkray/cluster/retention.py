"""Which checkpoints stay when a sweep is over: every trial's last one, and the best of the front.

While a trial runs it keeps the last, the one before it and the best. Of one that ended ``ok`` the
last was read back whole, so the one before has done its duty.
"""

import json
from collections.abc import Collection
from pathlib import Path

from bkray.train import checkpoint


def settle_checkpoints(sweep_folder: Path, front: Collection[str]) -> int:
    """Delete what trials that ended ``ok`` need no more; return how many files went.

    ``front`` are the ids of the trials on the Pareto front. Trials that ended otherwise keep all,
    and so does one whose last checkpoint cannot be read.
    """
    n_deleted = 0
    for outcome in sorted(sweep_folder.glob("trials/*/outcome.json")):
        folder = outcome.parent / checkpoint.FOLDER
        if json.loads(outcome.read_text())["outcome"] != "ok" or not _is_whole(folder):
            continue
        spares = [checkpoint.PREVIOUS]
        spares += [] if outcome.parent.name in front else [checkpoint.BEST]
        for name in spares:
            if (folder / name).exists():
                (folder / name).unlink()
                n_deleted += 1
    return n_deleted


def _is_whole(folder: Path) -> bool:
    return (folder / checkpoint.NAME).exists() and checkpoint.is_whole(folder / checkpoint.NAME)
