"""Validation loss of the mixers at equal parameters and equal tokens, over seeds.

    python -m benchmarks.quality [--seeds 3] [OVERRIDES ...]

The model is as in `docs/log.md`: 400 steps, width 64, 4 layers, 128 tokens, bytes of Python's own
library. Families differ in the mixer alone; the feed-forward width is set so that the parameters
agree to within half a percent.
"""

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

from bkray.events import TrialEnded
from bkray.nn.equal import at_equal_parameters, n_params
from bkray.overrides import build, parse
from bkray.trial import run

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "bk": {"model.mixer": "bk"},
    "attention": {"model.mixer": "attention", "model.position": "rope"},
    "linear_recurrence": {"model.mixer": "linear_recurrence"},
    "mamba": {"model.mixer": "mamba"},
}
BASE = {
    "model.d_model": 64,
    "model.n_layers": 4,
    "model.n_seq": 128,
    "train.steps": 400,
    "train.batch_size": 32,
    "train.eval_every": 400,
    "train.checkpoint_every": 400,
    "train.eval_windows": 256,
    "threads": 2,
}


def main() -> None:
    """Train every family on every seed and print losses, means and the margin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    base = {**BASE, **parse(arguments.overrides)}
    target = n_params({**base, **FAMILIES["attention"]})
    losses: dict[str, list[float]] = {}
    for family in arguments.families:
        overrides = at_equal_parameters({**base, **FAMILIES[family]}, target)
        losses[family] = [final_loss({**overrides, "seed": s}) for s in range(arguments.seeds)]
        shown = " ".join(f"{loss:.4f}" for loss in losses[family])
        print(
            f"{family:18s} {n_params(overrides):8,d} parameters  "
            f"mean {statistics.mean(losses[family]):.4f} nats/byte  seeds {shown}",
            flush=True,
        )
    if "bk" in losses and len(losses) > 1:
        rivals = min(loss for family, seeds in losses.items() if family != "bk" for loss in seeds)
        print(f"worst BK seed {max(losses['bk']):.4f}, best rival seed {rivals:.4f}")


def final_loss(overrides: Mapping[str, Any]) -> float:
    """Return the validation loss of one trial at its last step, in nats per byte."""
    *_, ended = run(build(overrides), None)
    assert isinstance(ended, TrialEnded) and ended.outcome == "ok", ended
    return float(ended.summary["final_val_loss_nats"])


if __name__ == "__main__":
    main()
