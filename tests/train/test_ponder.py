"""The price of pondering: the more it costs, the fewer layers are run."""

import itertools
from pathlib import Path

from tiny import tiny_config

from bkray.events import EvalDone
from bkray.trial import run

STEPS = 100


def layers_executed(text: Path, act_lambda: float) -> float:
    config = tiny_config(
        "bk",
        corpus=str(text),
        device="cpu",
        depth="act",
        act_lambda=act_lambda,
        act_threshold=0.9,
        halt_lr_factor=3.0,
        n_layers=4,
        n_seq=32,
        batch_size=4,
        lr=0.01,
        warmup_steps=2,
        eval_every=STEPS,
        eval_windows=4,
        **{"train.steps": STEPS},
    )
    evaluation = next(event for event in run(config, None) if isinstance(event, EvalDone))
    return evaluation.metrics["act/avg_layers_executed"]


def test_raising_the_price_lowers_the_layers_executed(text: Path) -> None:
    layers = [layers_executed(text, price) for price in (0.001, 0.02, 0.2)]
    for cheap, dear in itertools.pairwise(layers):
        assert dear <= cheap - 0.2, layers
    assert layers[0] > 2.5
    assert layers[2] < 1.5
