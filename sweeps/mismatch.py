"""Train length by evaluation length: attention and BK, by position, by how long rows are read.

Run it with ``bkray sweep mismatch --preset small``; with lengths of your own by
``model.n_seq=128 mismatch.lengths=256,512``, where models are trained at each of the three, and
for one model by ``model.mixer=bk model.position=none``.
"""

from collections.abc import Iterator
from itertools import pairwise

from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.overrides import Overrides, acting, build
from bkray.sweep import SMOKE, Arm, Objective, Preset, Sweep

MODELS = {"attention": ("none", "learned", "rope"), "bk": ("none", "learned")}
"""Mixers and the positions that act in them."""


def arms(base: Overrides) -> list[Arm]:
    """Return a model of each kind for each length, trained on as many tokens.

    One that is trained at a length is what ``retrain`` means there to those trained at shorter
    ones, and is itself evaluated at longer ones.

    Raises:
        ConfigError: no lengths, one that does not divide the next, rows that cannot be shared
            out among the lengths, or a model that is not one of ``MODELS``.
    """
    own = ("model.mixer", "model.position")
    config = build(acting({name: base[name] for name in base if name not in own}))
    if not config.mismatch.evaluated:
        raise ConfigError("nothing to evaluate at: give mismatch.lengths=512,1024")
    lengths = sorted({config.model.n_seq, *config.mismatch.evaluated})
    for n_seq, longer in pairwise(lengths):
        if longer % n_seq:
            raise ConfigError(
                f"mismatch.lengths={config.mismatch.lengths}: {longer} is no multiple of {n_seq}, "
                "at which models are trained as well; give lengths of which each divides the next"
            )
    return [
        Arm(
            name=f"{mixer}-{position}-{n_seq}",
            overrides={
                "model.mixer": mixer,
                "model.position": position,
                **_at(config, n_seq, lengths),
            },
        )
        for mixer, position in _models(base)
        for n_seq in lengths
    ]


def _models(base: Overrides) -> Iterator[tuple[str, str]]:
    mixer, position = base.get("model.mixer"), base.get("model.position")
    known = [(name, place) for name, places in MODELS.items() for place in places]
    chosen = [pair for pair in known if mixer in (None, pair[0]) and position in (None, pair[1])]
    if not chosen:
        raise ConfigError(
            f"the sweep has no model with model.mixer={mixer} and model.position={position}: "
            "it knows attention with none, learned or rope, and bk with none or learned"
        )
    yield from chosen


def _at(config: TrialConfig, n_seq: int, lengths: list[int]) -> Overrides:
    plan, shortest, longest = config.train, config.model.n_seq, lengths[-1]
    tokens = plan.batch_size * shortest
    if tokens % n_seq:
        raise ConfigError(
            f"train.batch_size={plan.batch_size} rows of {shortest} tokens are no whole rows of "
            f"{n_seq}: raise it, so that all lengths train on as many tokens a step"
        )
    if tokens // n_seq % plan.accumulation:
        raise ConfigError(
            f"train.accumulation={plan.accumulation} must divide the rows a step of each length, "
            f"got {tokens // n_seq} of {n_seq} tokens with train.batch_size={plan.batch_size}: "
            "lower it or raise batch_size"
        )
    if plan.eval_windows * shortest % longest:
        raise ConfigError(
            f"train.eval_windows={plan.eval_windows} rows of {shortest} tokens are no whole rows "
            f"of {longest}: give a multiple of {longest // shortest}"
        )
    evaluated = [n for n in config.mismatch.evaluated if n >= n_seq]
    overrides = {
        "model.n_seq": n_seq,
        "mismatch.lengths": ",".join(map(str, evaluated)),
        "train.batch_size": tokens // n_seq,
        "train.eval_stretch": longest,
        "train.eval_windows": plan.eval_windows * shortest // n_seq,
    }
    return overrides if n_seq < longest else {**overrides, **_NO_LONGER}


_NO_LONGER: Overrides = {"mismatch.strategies": None, "mismatch.overlap": None}
"""Where there is nothing longer, no strategy acts."""

SWEEP = Sweep(
    name="mismatch",
    overview="trained at one length and evaluated at another: perplexity, states and retrieval",
    base={
        "model.n_seq": 256,
        "mismatch.lengths": "512",
        "train.batch_size": 8,
        "train.eval_windows": 64,
    },
    rivals=arms,
    objectives=(Objective(column="final_val_loss_nats", direction="minimize"),),
    presets={
        "smoke": Preset(
            trials=0,
            overrides={
                **SMOKE,
                "mismatch.lengths": "128",
                "mismatch.windows": 8,
                "mismatch.items": 16,
            },
        ),
        "small": Preset(
            trials=0,
            seeds=3,
            overrides={
                "model.n_layers": 2,
                "train.steps": 300,
                "train.eval_every": 150,
                "train.checkpoint_every": 150,
            },
        ),
        "full": Preset(
            trials=0,
            overrides={
                "mismatch.lengths": "512,1024,2048",
                "train.steps": 4000,
                "train.eval_every": 1000,
                "train.checkpoint_every": 1000,
            },
        ),
    },
)
