"""What learned length saves, and what it costs each kind of row, against a dense model.

    python -m benchmarks.length [--seeds 3] [--steps 400] [KNOB=VALUE ...]

Dense and learned are trained alike, on the same batches; perplexities are those of all sites, and
``lost`` is by how much the learned one's lies above the dense one's (below 0: it is better). The
speed is that of the clock, in evaluation on one batch, the two in turn (median of paired ratios).
"""

import argparse
import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from bkray.events import EvalDone, Measured
from bkray.overrides import Overrides, acting, build, parse
from bkray.trial import run

BASE: Overrides = {
    "data.corpus": "mixture",
    "train.batch_size": 24,
    "train.eval_windows": 192,
    "model.length": "learned",
    "model.length_penalty": 0.02,
}


def main() -> None:
    """Print one line per seed and kind, and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("knobs", nargs="*")
    chosen = parser.parse_args()
    base = {**BASE, "train.steps": chosen.steps, "train.eval_every": chosen.steps}
    base |= parse(chosen.knobs)
    speeds, estimates = [], []
    for seed in range(chosen.seeds):
        dense = trained(acting({**base, "seed": seed, "model.length": "fixed"}))
        learned = trained({**base, "seed": seed})
        speeds.append(learned["speed/speedup_measured"])
        estimates.append(learned["speed/speedup_estimate"])
        for kind in kinds(learned):
            print(line(seed, kind, dense, learned), flush=True)
        print(
            f"seed {seed}  all: {learned['length/avg_length']:.1f} sites, "
            f"measured {speeds[-1]:.2f}x, estimate {estimates[-1]:.2f}x, "
            f"dense {dense['loss_nats']:.4f}, learned {learned['loss_nats']:.4f} nats",
            flush=True,
        )
    print(f"means: measured {fmean(speeds):.2f}x, estimate {fmean(estimates):.2f}x")


def trained(overrides: Mapping[str, Any]) -> dict[str, float]:
    """Return the last evaluation's numbers of a trial, and its speed."""
    said: dict[str, float] = {}
    for event in run(build(overrides), None):
        match event:
            case EvalDone():
                said |= {**event.metrics, "loss_nats": event.loss_nats}
            case Measured():
                said |= event.metrics
    return said


def kinds(metrics: Mapping[str, float]) -> list[str]:
    """Return the kinds of rows that were told apart; the whole where none were."""
    found = [name.split("/")[1] for name in metrics if name.startswith("kinds/")]
    return list(dict.fromkeys(found))


def line(seed: int, kind: str, dense: Mapping[str, float], learned: Mapping[str, float]) -> str:
    """Return what one kind costs and gains."""
    before, after = (said[f"kinds/{kind}/loss_nats"] for said in (dense, learned))
    length = learned[f"kinds/{kind}/avg_length"]
    return (
        f"seed {seed}  {kind:9s} dense {math.exp(before):8.2f}  learned {math.exp(after):8.2f}  "
        f"lost {math.expm1(after - before):+7.2%}  length {length:5.1f}"
    )


if __name__ == "__main__":
    main()
