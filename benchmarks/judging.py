"""What a step pays for its judge: verdicts, masks, norms and outputs by block, and snapshots.

    python -m benchmarks.judging [--pairs 40] [--mixer bk]

A window of 16 steps of the default model (d=64, 4 layers, 16 rows) is taken in turn by the trial's
own loop, with the snapshot before and the judge after it, and by the plain loop below, which
clips, steps and copies loss and norm to the host once; both on the same batches, from the same
weights, on one thread. Seconds are those of the processor, so that other work on the machine costs
neither. Who goes first changes from pair to pair, the figure is the median of the ratios within
the pairs, and the interval, of 95%, that of 2000 resamples of the pairs.
"""

import argparse
import gc
import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from bkray.data.shards import prepare
from bkray.ops.memory import keep_freed_memory
from bkray.overrides import build
from bkray.stability import judge
from bkray.train.optim import lr_factor, set_lr
from bkray.train.run import Run
from bkray.train.step import losses
from bkray.train.window import WINDOW, train_window
from bkray.trial import compose, warm_up

N_SEQ = (128, 512)
MOST = 0.02
"""The bar: share of a step."""


def main() -> None:
    """Print one line per training length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--mixer", default="bk")
    parser.add_argument("--n-seq", type=int, nargs="+", default=N_SEQ)
    chosen = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    for n_seq in chosen.n_seq:
        watched, bare = (a_run(chosen.mixer, n_seq) for _ in range(2))
        seconds = paired(lambda: judged(watched), lambda: plain(bare), chosen.pairs)  # noqa: B023
        snapshot = median(timed(lambda: watched.memory.keep(watched.state())) for _ in range(20))  # noqa: B023
        show(n_seq, seconds, snapshot)


def a_run(mixer: str, n_seq: int) -> Run:
    """Return a trial of the default model, one window old, whose windows are always whole."""
    config = build(
        {
            "model.mixer": mixer,
            "model.n_seq": n_seq,
            "train.steps": 2**20,
            "train.eval_every": 2**20,
            "train.checkpoint_every": 2**20,
            "train.device": "cpu",
        }
    )
    run = compose(config, prepare(config.data, n_seq), None)
    warm_up(run)
    train_window(run)
    return run


def judged(run: Run) -> None:
    """Take a window as a trial does."""
    run.memory.keep(run.state())
    window = train_window(run)
    run.progress.health, verdict, _ = judge(
        run.progress.health, window, unigram_nats=run.task.unigram_nats
    )
    assert verdict.state != "diverged"


def plain(run: Run) -> None:
    """Take a window as it would be if nobody looked."""
    optimizer, config = run.config.optimizer, run.config
    said = []
    for step in range(run.progress.step + 1, run.progress.step + WINDOW + 1):
        set_lr(run.optimizer, optimizer.lr * lr_factor(step, config.train.steps, optimizer))
        run.optimizer.zero_grad(set_to_none=True)
        inputs_BN, targets_BN = next(run.batches)
        with run.autocast:
            numbers = losses(run.model(inputs_BN), targets_BN, config.model, None)
        torch.autograd.backward(numbers["total"])
        norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), optimizer.clip_norm)
        run.optimizer.step()
        said += [numbers["loss_nats"].detach(), norm]
    torch.stack(said).tolist()
    run.progress.step += WINDOW


def paired(
    first: Callable[[], Any], second: Callable[[], Any], n_pairs: int
) -> list[tuple[float, float]]:
    """Return the seconds of both, pair by pair."""
    seconds = []
    gc.disable()  # a collection would hit one of them
    for i in range(n_pairs):
        if i % 2:
            then, now = timed(second), timed(first)
        else:
            now, then = timed(first), timed(second)
        seconds.append((now, then))
        gc.collect()
    gc.enable()
    return seconds


def timed(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def show(n_seq: int, seconds: Sequence[tuple[float, float]], snapshot: float) -> None:
    """Print what watching adds, with its interval, and what of it the snapshot is."""
    ratios = [with_it / without for with_it, without in seconds]
    draw = random.Random(0)
    means = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    step_ms = 1000 * median(without for _, without in seconds) / WINDOW
    added = median(ratios) - 1
    held = "held" if added <= MOST else "MISSED"
    print(
        f"n_seq {n_seq}: plain step {step_ms:.2f} ms, watched {added:+.2%} "
        f"[{means[50] - 1:+.2%}, {means[1949] - 1:+.2%}] over {len(ratios)} pairs, "
        f"at most {MOST:.0%}: {held}; of it the snapshot {1000 * snapshot / WINDOW:.3f} ms",
        flush=True,
    )


if __name__ == "__main__":
    main()
