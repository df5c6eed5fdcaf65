"""Many trials in a row on Ray Train, two workers each: time of each, and what is left in Ray.

Run it with ``python -m benchmarks.nested --trials 20``.
"""

import argparse
import tempfile
import time
from pathlib import Path

from ray.util.state import list_actors, list_placement_groups

from bkray.cluster.session import session
from bkray.cluster.tuner import SweepOptions, run_sweep
from sweeps.act import SWEEP

SMALL = {"train.steps": 8, "train.eval_every": 4, "train.eval_windows": 4}
SETTLED_SECONDS = 5.0
"""After the last trial; Ray takes a second or so to bury what has ended."""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--trials", type=int, default=20, help="trials in all, two of them dense")
    words.add_argument("--workers", type=int, default=2, help="workers of each trial")
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as folder, session(address=None, threads=1) as ray:
        options = SweepOptions(
            out=Path(folder) / "sweep",
            preset="smoke",
            trials=asked.trials - 2,
            overrides=SMALL,
            workers=asked.workers,
            ray_train=True,
        )
        began = time.monotonic()
        ended = run_sweep(SWEEP, options)
        seconds = time.monotonic() - began
        time.sleep(SETTLED_SECONDS)
        address = ray.get_runtime_context().gcs_address
        actors = list_actors(address=address, filters=[("state", "!=", "DEAD")])
        groups = list_placement_groups(address=address, filters=[("state", "!=", "REMOVED")])
    n_trials = sum(ended.outcomes.values())
    print(f"{n_trials} trials, {dict(ended.outcomes)}: {seconds / n_trials:.1f} s each")
    print(f"actors left: {sorted(actor.class_name for actor in actors)}")
    print(f"placement groups left: {len(groups)}")


if __name__ == "__main__":
    main()
