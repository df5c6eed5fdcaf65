"""The length ladder: one model per length, or one that climbs, up to the longest stable length.

Run it with ``bkray sweep ladder --preset small``; with lengths of your own by
``ladder.lengths=128,512,2048``, with one model for all of them by ``ladder.mode=carry``, with the
learning rate searched at every length by ``ladder.lr_rule=search``, and every length with the
monitor and without by ``train.monitor=birman_schwinger ladder.monitor=both``.
"""

import math
from collections.abc import Sequence
from itertools import product

from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.overrides import Overrides, acting, build
from bkray.rungs import MONITORED, Reach, reach, rows_at
from bkray.sweep import Arm, Ended, Objective, Preset, Sweep

LR_FACTORS = (1.0, 1 / 3, 3.0)
"""Learning rates tried, as multiples of the given one."""

NEAREST_RATIO = 2
"""Neighbours of no larger ratio are near enough for the longest stable length."""


def arms(base: Overrides) -> list[Arm]:
    """Return what is trained first: every length, or the shortest one at every learning rate.

    Raises:
        ConfigError: no lengths are given.
    """
    config = build(acting(base))
    lengths = config.ladder.rungs
    if not lengths:
        raise ConfigError("the ladder has no lengths: give ladder.lengths=128,512,2048")
    if config.ladder.mode == "carry":
        return in_pairs(config, [Arm(name="carry", overrides={})])
    if config.ladder.lr_rule == "given":
        return rungs_at(config, lengths, [config.optimizer.lr])
    tried = lengths[:1] if config.ladder.lr_rule == "transfer" else lengths
    return rungs_at(config, tried, learning_rates(config))


def follow(base: Overrides, ended: Sequence[Ended]) -> list[Arm]:
    """Return what comes next: the other lengths at the learning rate that was best at the
    shortest, lengths between the longest stable one and one at which all rates diverged, and
    other learning rates at the longest stable length, which test the transfer, unless that is the
    shortest, which they come from. Trials with the monitor beside others without decide nothing.
    """
    config = build(acting(base))
    if config.ladder.mode == "carry":
        return []
    led = [one for one in ended if not one.name.endswith(MONITORED)]
    rates = learning_rates(config)
    if config.ladder.lr_rule == "given":
        rates = rates[:1]
    if config.ladder.lr_rule == "transfer":
        if (best := best_rate(led, config.ladder.rungs[0])) is None:
            return []  # no learning rate is stable at the shortest length
        rates = [best]
        if new := _new(rungs_at(config, config.ladder.rungs, rates), ended):
            return new
    found = reach((one.overrides["model.n_seq"], one.outcome) for one in led)
    between = _between(config, found)
    if new := _new(rungs_at(config, between, rates), ended):
        return new
    longest = found.stable
    if config.ladder.lr_rule != "transfer" or longest in (None, config.ladder.rungs[0]):
        return []
    tested = [rates[0] * times for times in LR_FACTORS]
    return _new(rungs_at(config, [longest], tested), ended)


def rungs_at(config: TrialConfig, lengths: Sequence[int], rates: Sequence[float]) -> list[Arm]:
    """Return the arms of every length at every learning rate."""
    return in_pairs(config, [rung(config, n, lr) for n, lr in product(lengths, rates)])


def in_pairs(config: TrialConfig, arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms, where ``ladder.monitor=both`` each without the monitor and with it."""
    if config.ladder.monitor == "given":
        return list(arms)
    plan = config.train
    settings: dict[str, Overrides] = {
        "": {"train.monitor": "off", "train.precision_upgrade": None},
        MONITORED: {
            "train.monitor": plan.monitor,
            "train.precision_upgrade": plan.precision_upgrade,
        },
    }
    return [
        Arm(
            name=arm.name + suffix,
            overrides={**arm.overrides, "ladder.monitor": "given", **setting},
        )
        for arm in arms
        for suffix, setting in settings.items()
    ]


def rung(config: TrialConfig, n_seq: int, lr: float) -> Arm:
    """Return the arm that trains at one length; all of them score the same validation tokens."""
    plan, longest = config.train, config.model.n_seq
    batch_size, rows = rows_at(config, n_seq)
    overrides = {
        "model.n_seq": n_seq,
        "ladder.lengths": str(n_seq),
        "ladder.lr_rule": "given",
        "train.batch_size": batch_size,
        "train.accumulation": batch_size // rows,
        "train.chunk": plan.chunk if plan.chunk is not None and plan.chunk < n_seq else None,
        "train.eval_stretch": longest,
        "train.eval_windows": plan.eval_windows * -(-longest // n_seq),
        "optimizer.lr": lr,
    }
    times = "" if config.ladder.lr_rule == "given" else f"-lr-{lr:.2g}"
    return Arm(name=f"seq-{n_seq}{times}", overrides=overrides)


def learning_rates(config: TrialConfig) -> list[float]:
    """Return the learning rates that are tried where one is searched."""
    return [config.optimizer.lr * factor for factor in LR_FACTORS]


def best_rate(ended: Sequence[Ended], n_seq: int) -> float | None:
    """Return the learning rate of least loss at a length; ``None`` where none is stable."""
    stable = [
        (loss, one.overrides["optimizer.lr"])
        for one in ended
        if one.overrides["model.n_seq"] == n_seq and one.outcome == "ok"
        for loss in one.values
        if loss is not None
    ]
    return min(stable)[1] if stable else None


def _between(config: TrialConfig, found: Reach) -> list[int]:
    """Return the length to look at next, if there is one: about halfway on a log scale, and a
    divisor of the longest if one is near, for its steps are of exactly as many tokens."""
    stable, diverged = found
    if stable is None or diverged is None or diverged <= NEAREST_RATIO * stable:
        return []
    middle = math.sqrt(stable * diverged)

    def ratio(n: int) -> float:
        return round(max(n / middle, middle / n), 9)

    inside = [n for n in range(stable + 1, diverged) if config.model.n_seq % n == 0]
    near = [n for n in inside if ratio(n) <= round(math.sqrt(NEAREST_RATIO), 9)]
    return [min(near or [round(middle)], key=ratio)]


def _new(wanted: Sequence[Arm], ended: Sequence[Ended]) -> list[Arm]:
    names = {one.name for one in ended}
    return [arm for arm in wanted if arm.name not in names]


LENGTHS = "128,512,2048,8192,32768,131072"

SWEEP = Sweep(
    name="ladder",
    overview="sequence lengths from 128 to 131,072 tokens, and the longest one that is stable",
    base={
        "ladder.lengths": LENGTHS,
        "data.corpus": "documents",  # rows of any length lie within one
        "train.batch_size": 1,
        "train.chunk": 4096,
    },
    rivals=arms,
    follow=follow,
    objectives=(Objective(column="final_val_loss_nats", direction="minimize"),),
    presets={
        "smoke": Preset(
            trials=0,
            overrides={
                "ladder.lengths": "32,64,256",
                "model.n_layers": 1,
                "model.d_model": 16,
                "model.n_heads": 4,
                "model.n_values": 2,
                "train.chunk": 64,
                "train.steps": 8,
                "train.eval_every": 8,
                "train.checkpoint_every": 8,
                "train.eval_windows": 2,
                "data.max_bytes": 200_000,
            },
        ),
        "small": Preset(
            trials=0,
            overrides={
                "model.n_layers": 2,
                "model.d_model": 32,
                "model.n_heads": 8,
                "model.n_values": 4,
                "train.steps": 30,
                "train.eval_every": 30,
                "train.checkpoint_every": 30,
                "train.eval_windows": 1,
                "optimizer.warmup_steps": 5,
            },
        ),
        "full": Preset(
            trials=0,
            overrides={
                "ladder.lr_rule": "transfer",
                "train.steps": 2000,
                "train.eval_every": 500,
                "train.checkpoint_every": 500,
                "train.eval_windows": 2,
            },
        ),
    },
)
