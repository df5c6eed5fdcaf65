"""The verb that scores a trial's checkpoint: ``eval``."""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkray.cli.words import AsJson, print_json
from bkray.errors import ConfigError

if TYPE_CHECKING:
    from bkray.stats import Interval
    from bkray.train.context import ContextBenefit
    from bkray.train.streaming import StreamLoss

CHUNK = 4096
"""Sites held at once, unless told otherwise."""
SECONDS_BETWEEN_NEWS = 2.0


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="TRIAL_DIR")],
    split: Annotated[str, typer.Option(help="valid or test.")] = "valid",
    stream: Annotated[
        bool, typer.Option("--stream", help="One stream, its state carried on.")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens of the stream; default: the split, once.")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(help=f"Tokens of the stream held at once; default: {CHUNK}.")
    ] = None,
    context: Annotated[
        bool, typer.Option("--context", help="What context is worth, by distance.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Score a trial's checkpoint on the whole of a split, window by window.

    With --stream it is one stream of any length, in the memory of one chunk:
    each token is scored by all before it, by attention through a window of
    model.n_seq tokens. A split shorter than --tokens is repeated.

    With --context the same tokens are scored with what lies further back than
    1, 2, 4 ... tokens cut off, or shuffled: what the model makes of it.
    """
    if split not in ("valid", "test"):
        raise ConfigError(f"--split must be valid or test, got {split!r}")
    if stream and context:
        raise ConfigError("--stream and --context are two evaluations: give one of them")
    for name, value in (("--tokens", tokens), ("--chunk", chunk)):
        if value is not None and not stream:
            raise ConfigError(f"{name}={value} does nothing without --stream")
    if stream:
        _stream(folder, split, tokens, CHUNK if chunk is None else chunk, as_json)
    elif context:
        _context(folder, split, as_json)
    else:
        _windows(folder, split, as_json)
    return 0


def _windows(folder: Path, split: str, as_json: bool) -> None:
    from bkray.trial import evaluate_checkpoint

    step, score = evaluate_checkpoint(folder, split)
    if as_json:
        print_json({"split": split, "step": step, "loss_nats": score.loss_nats, **score.metrics})
        return
    print(f"{split}: {score.loss_nats:.4f} nats/token at step {step}")
    for metric, value in score.metrics.items():
        print(f"  {metric} {value:.4f}")


def _stream(folder: Path, split: str, n_tokens: int | None, chunk: int, as_json: bool) -> None:
    from bkray.train.streaming import stream_loss
    from bkray.trial import open_checkpoint

    trial, shards = open_checkpoint(folder)
    text = shards.tokens(split)
    n_tokens = len(text) - 1 if n_tokens is None else n_tokens
    said = stream_loss(
        trial.model,
        text,
        n_tokens,
        chunk=chunk,
        autocast=trial.autocast,
        progress=_news(n_tokens),
    )
    step = trial.progress.step
    if as_json:
        derived = {"n_chunks": said.n_chunks, "tokens_per_second": said.tokens_per_second}
        print_json({"split": split, "step": step, **dataclasses.asdict(said), **derived})
        return
    print(f"{split}, one stream: {said.loss_nats:.4f} nats/token at step {step}")
    for line in _stream_lines(said):
        print(line)


def _news(n_tokens: int) -> Callable[[int, float], None]:
    """Return what tells now and then, beside the answer, how far the stream is."""
    start = told = time.monotonic()

    def tell(done: int, loss_nats: float) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN_NEWS:
            told = now
            speed = done / (now - start)
            said = f"{done:,} of {n_tokens:,} tokens, {loss_nats:.4f} nats, {speed:,.0f} tokens/s"
            print(said, file=sys.stderr, flush=True)

    return tell


def _stream_lines(said: "StreamLoss") -> list[str]:
    window = f", attention over the last {said.window} tokens" if said.window else ""
    repeated = ": repeated from its start" if said.passes > 1 else ""
    return [
        f"  perplexity {said.ppl:.3f}",
        f"  {said.n_tokens:,} tokens in {said.n_chunks:,} chunks of {said.chunk:,}{window}",
        f"  {said.passes:.2f} passes over the text{repeated}",
        f"  {said.tokens_per_second:,.0f} tokens/s, peak memory {said.peak_memory_mib:.0f} MiB",
        f"{'position':>17}  loss nats",
        *(f"{f'{b.first:,}-{b.last:,}':>17}  {b.loss_nats:.4f}" for b in said.buckets),
    ]


def _context(folder: Path, split: str, as_json: bool) -> None:
    from bkray.data.batches import validation_windows
    from bkray.train.context import context_benefit
    from bkray.trial import open_checkpoint

    trial, shards = open_checkpoint(folder)
    n_seq, plan = trial.config.model.n_seq, trial.config.train
    found = context_benefit(
        trial.model,
        *validation_windows(
            shards.tokens(split),
            n_seq,
            plan.eval_windows,
            segment=shards.segment,
            kinds=shards.kinds,
        ),
        batch_size=plan.batch_size,
        autocast=trial.autocast,
        chunk=CHUNK if n_seq > CHUNK else None,
    )
    if as_json:
        told: dict[str, Any] = {"is_flat": found.is_flat, **dataclasses.asdict(found)}
        print_json({"split": split, "step": trial.progress.step, **told})
        return
    for line in _context_lines(found):
        print(line)


def _context_lines(found: "ContextBenefit") -> list[str]:
    verdict = (
        "flat: no distance is of any use, so far as these windows tell"
        if found.is_flat
        else "nats per token that the tokens further back than a distance are worth"
    )
    return [
        f"{found.loss_nats:.4f} nats/token with all of {found.n_sites} tokens: the last "
        f"{found.n_targets} targets of {found.n_windows} windows",
        verdict,
        f"{'distance':>9}  {'against a cut':>28}  {'against a shuffle':>28}",
        *(
            f"{one.distance:>9,}  {_with_bounds(one.over_cut):>28}  "
            f"{_with_bounds(one.over_shuffled):>28}"
            for one in found.benefits
        ),
        "intervals hold at 95% all together",
    ]


def _with_bounds(interval: "Interval") -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.4f}"
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
