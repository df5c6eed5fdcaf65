"""Whether the verdicts of a comparison may be believed: a family against itself, and planted wins.

    python -m benchmarks.aa [--seeds 48] [--draws 1000] [OVERRIDES ...]

Trains many seeds of one small family, and the same seeds of a rival to see what seeds have in
common. Then draws two disjoint sets of 8 again and again: every winner is a false one. With two
standard deviations added to one side every undecided one is a miss.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from bkray.events import TrialEnded
from bkray.overrides import Overrides, build, parse
from bkray.report.comparison import MARGIN_NATS
from bkray.stats import compare
from bkray.sweep import SMOKE
from bkray.trial import run

N_SEEDS = 8
FAMILIES = {"bk": {"model.mixer": "bk"}, "attention": {"model.mixer": "attention"}}


def main() -> None:
    """Print false winners, found differences, and the correlation of seeds between families."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    base = {**SMOKE, "train.steps": 40, "train.eval_every": 40, **parse(arguments.overrides)}
    losses = {
        name: [final_loss({**base, **knobs, "seed": seed}) for seed in range(arguments.seeds)]
        for name, knobs in FAMILIES.items()
    }
    for name, own in losses.items():
        print(f"{name}: mean {np.mean(own):.4f}, deviation {np.std(own, ddof=1):.4f} nats")
    print(f"correlation over seeds: {np.corrcoef(list(losses.values()))[0, 1]:.2f}")
    for name, own in losses.items():
        for n_rivals in (1, 3):
            false = share_won(own, 0.0, n_rivals, arguments.draws)
            found = share_won(own, 2 * float(np.std(own, ddof=1)), n_rivals, arguments.draws)
            print(
                f"{name} against {n_rivals} of itself: winners {false[0]:.1%} of the comparisons, "
                f"{false[1]:.1%} of the draws; with two deviations {found[0]:.1%}"
            )


def share_won(
    losses: Sequence[float], planted: float, n_rivals: int, draws: int
) -> tuple[float, float]:
    """Return the shares of comparisons with a winner, and of draws that had any."""
    rng = np.random.default_rng(0)
    won = []
    for _ in range(draws):
        ours, *rivals = rng.permutation(losses)[: (1 + n_rivals) * N_SEEDS].reshape(-1, N_SEEDS)
        pairs = {
            str(i): list(zip(ours.tolist(), (rival + planted).tolist(), strict=True))
            for i, rival in enumerate(rivals)
        }
        said = compare(pairs, margin=MARGIN_NATS).values()
        won.append([one.verdict == "winner" for one in said])
    return float(np.mean(won)), float(np.mean(np.any(won, axis=1)))


def final_loss(overrides: Overrides) -> float:
    """Return the validation loss of one trial at its last step, in nats per byte."""
    *_, ended = run(build(overrides), None)
    assert isinstance(ended, TrialEnded) and ended.outcome == "ok", ended
    return float(ended.summary["final_val_loss_nats"])


if __name__ == "__main__":
    main()
