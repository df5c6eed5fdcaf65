"""One trial from Python: a config in, events out.

python examples/a_trial.py
"""

from bkray import build
from bkray.events import EvalDone, TrialEnded
from bkray.trial import run

OVERRIDES = {
    "model.depth": "act",
    "model.act_lambda": 0.02,
    "model.d_model": 32,
    "model.n_layers": 3,
    "model.n_seq": 64,
    "train.steps": 40,
    "train.eval_every": 20,
}


def main() -> None:
    """Print the validation losses and what the clock saw."""
    for event in run(build(OVERRIDES), folder=None):
        if isinstance(event, EvalDone):
            layers = event.metrics["act/avg_layers_executed"]
            print(f"step {event.step}: {event.loss_nats:.3f} nats/byte, {layers:.2f} layers")
        elif isinstance(event, TrialEnded):
            print(f"{event.outcome}: {event.summary['speedup_measured']:.2f}x the dense speed")


if __name__ == "__main__":
    main()
