"""What learned length saves, and what it costs each kind of row, against a dense model.

    python -m benchmarks.length [--seeds 3] [--steps 400] [--penalties 0.02 ...] [KNOB=VALUE ...]

Dense and learned are trained alike, on the same batches; perplexities are those of all sites, and
``lost`` is by how much the learned one's lies above the dense one's (below 0: it is better). The
speed is that of the clock, in evaluation on one batch, the two in turn (median of paired ratios).

``regret`` is what the predictor's bins cost beyond each row's own best bin, penalty included: as a
share of what the best ones cost, and, in brackets, of what the best single bin for all rows costs
beyond them, which is all that there is to gain. Several penalties: one learned model for each.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn

from bkray.data.shards import prepare
from bkray.events import EvalDone
from bkray.nn.length import LearnedLength
from bkray.ops.memory import keep_freed_memory
from bkray.overrides import Overrides, acting, build, parse
from bkray.train.loop import train
from bkray.train.recorded import Windows, cut_losses
from bkray.train.run import Run
from bkray.train.summary import measure_speed
from bkray.trial import compose, never, use_threads, warm_up

BASE: Overrides = {
    "data.corpus": "mixture",
    "train.batch_size": 24,
    "train.eval_windows": 192,
    "train.speed_rows": 96,
    "model.length": "learned",
    "model.length_penalty": 0.02,
}
MOST_REGRET, MOST_PARAMETERS = 0.1, 0.01
"""The bars."""


class Trained(NamedTuple):
    """A trial that has ended, and its last evaluation's numbers, ``loss_nats`` among them."""

    run: Run
    said: Mapping[str, float]


class Regret(NamedTuple):
    """What was chosen above the best choice of each row, as a share of two things."""

    of_cost: float
    of_gain: float
    """Of what the best single bin for all rows costs above those best choices."""


def main() -> None:
    """Print one line per seed, penalty and kind, and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--penalties", type=float, nargs="+")
    parser.add_argument("knobs", nargs="*")
    chosen = parser.parse_args()
    base = {**BASE, "train.steps": chosen.steps, "train.eval_every": chosen.steps}
    base |= parse(chosen.knobs)
    penalties = chosen.penalties or [base["model.length_penalty"]]
    rows: dict[float, list[Mapping[str, float]]] = {penalty: [] for penalty in penalties}
    for seed in range(chosen.seeds):
        dense = trained(acting({**base, "seed": seed, "model.length": "fixed"}))
        for penalty in penalties:
            learned = trained({**base, "seed": seed, "model.length_penalty": penalty})
            rows[penalty].append(compared(seed, penalty, dense.said, learned))
    for penalty, seeds in rows.items():
        means = {name: fmean(row[name] for row in seeds) for name in seeds[0]}
        print(f"means, penalty {penalty:g}: {told(means)}")
    lengths = [fmean(row["sites"] for row in seeds) for _, seeds in sorted(rows.items())]
    if len(lengths) > 1:
        falls = all(longer > shorter for longer, shorter in pairwise(lengths))
        print(f"a higher penalty gives shorter rows: {held(falls)}")
    print(parameters(learned.run.model))


def trained(overrides: Mapping[str, Any]) -> Trained:
    """Train a trial to its end, as ``bkray train`` does, but keep the model."""
    config = build(overrides)
    use_threads(config.threads)
    keep_freed_memory()
    run = compose(config, prepare(config.data, config.model.n_seq), None)
    warm_up(run)
    said: dict[str, float] = {}
    for event in train(run, never):
        if isinstance(event, EvalDone):
            said |= {**event.metrics, "loss_nats": event.loss_nats}
    return Trained(run, said)


def compared(
    seed: int, penalty: float, dense: Mapping[str, float], learned: Trained
) -> Mapping[str, float]:
    """Print what every kind costs and gains; return the figures of all of them together."""
    config, said = learned.run.config, learned.said
    speed = measure_speed(learned.run, prepare(config.data, config.model.n_seq).vocab_size)
    beyond_best = regret(learned.run, penalty)
    figures = {
        "sites": said["length/avg_length"],
        "measured": speed["speed/speedup_measured"],
        "estimate": speed["speed/speedup_estimate"],
        "regret": beyond_best.of_cost,
        "of gain": beyond_best.of_gain,
    }
    for kind in kinds(said):
        print(line(seed, kind, dense, said), flush=True)
    print(
        f"seed {seed}  penalty {penalty:g}: {told(figures)}, "
        f"dense {dense['loss_nats']:.4f}, learned {said['loss_nats']:.4f} nats",
        flush=True,
    )
    return figures


def told(figures: Mapping[str, float]) -> str:
    """Return the figures of one trial, or means of them."""
    return (
        f"{figures['sites']:.1f} sites, measured {figures['measured']:.2f}x, "
        f"estimate {figures['estimate']:.2f}x, regret {figures['regret']:.2%} "
        f"({figures['of gain']:.1%}), at most {MOST_REGRET:.0%}: "
        f"{held(figures['regret'] <= MOST_REGRET)}"
    )


def held(is_held: bool) -> str:
    """Return what became of a bar."""
    return "held" if is_held else "MISSED"


def regret(run: Run, penalty: float) -> Regret:
    """Return what the predictor's bins cost on the validation windows above the best ones."""
    assert isinstance(run.model, LearnedLength)
    cuts = cut_losses(
        run.model, Windows(*run.validation, run.config.train.batch_size, run.autocast), ()
    )
    assert cuts.chosen_E is not None
    sites_K = torch.tensor(cuts.lengths, dtype=cuts.table_EK.dtype)
    cost_EK = cuts.table_EK + penalty * sites_K / sites_K[-1]
    best = float(cost_EK.amin(1).mean())
    beyond = float(cost_EK.gather(1, cuts.chosen_E[:, None]).mean()) - best
    to_gain = float(cost_EK.mean(0).min()) - best
    return Regret(beyond / best, beyond / to_gain if to_gain else math.nan)


def parameters(model: nn.Module) -> str:
    """Return the predictor's share of them, and that of what answers behind a cut."""
    assert isinstance(model, LearnedLength)
    predictor, beyond, whole = (
        sum(p.numel() for p in part.parameters())
        for part in (model.predictor, model.beyond, model)
    )
    return (
        f"predictor {predictor:,} of {whole:,} parameters, {predictor / whole:.2%}, at most "
        f"{MOST_PARAMETERS:.0%}: {held(predictor <= MOST_PARAMETERS * whole)}; the answers behind "
        f"a cut {beyond:,}"
    )


def kinds(metrics: Mapping[str, float]) -> Sequence[str]:
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
