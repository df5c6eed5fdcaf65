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
    from bkray.train.context import ContextBenefit
    from bkray.train.streaming import StreamLoss
    from bkray.train.worth import Worth

CHUNK = 4096
"""Sites held at once, unless told otherwise."""
WINDOWS = 32
"""Of a split, whose context is looked at, unless told otherwise."""
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
    windows: Annotated[
        int | None, typer.Option(help=f"Windows with --context; default: {WINDOWS}.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Score a trial's checkpoint on the whole of a split, window by window.

    With --stream it is one stream of any length, in the memory of one chunk:
    each token is scored by all before it, by attention through a window of
    model.n_seq tokens. A split shorter than --tokens is repeated.

    With --context the same tokens are scored with what lies further back than
    1, 2, 4 ... tokens cut off, or shuffled: what the model makes of it. These
    are the last 8 targets of each window; on data.corpus=recall the answers.
    """
    if split not in ("valid", "test"):
        raise ConfigError(f"--split must be valid or test, got {split!r}")
    if stream and context:
        raise ConfigError("--stream and --context are two evaluations: give one of them")
    for name, value in (("--tokens", tokens), ("--chunk", chunk)):
        if value is not None and not stream:
            raise ConfigError(f"{name}={value} does nothing without --stream")
    if windows is not None and not context:
        raise ConfigError(f"--windows={windows} does nothing without --context")
    if stream:
        _stream(folder, split, tokens, CHUNK if chunk is None else chunk, as_json)
    elif context:
        _context(folder, split, WINDOWS if windows is None else windows, as_json)
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


def _context(folder: Path, split: str, n_windows: int, as_json: bool) -> None:
    from bkray.train.context import trial_benefit
    from bkray.trial import open_checkpoint

    trial, shards = open_checkpoint(folder)
    found = trial_benefit(trial, shards, split, n_windows)
    if as_json:
        told: dict[str, Any] = {kind: _context_told(one) for kind, one in found.items()}
        told = told.get("", {"kinds": told})
        print_json({"split": split, "step": trial.progress.step, **told})
        return
    for kind, one in found.items():
        if kind:
            print(f"{kind}, answers alone:")
        for line in _context_lines(one, n_windows):
            print(line)
    print("* above 0: sign-flip test over windows, all of a table together at 5%")
    print("[] bootstrap intervals, 95% each")


def _context_told(found: "ContextBenefit") -> dict[str, Any]:
    derived = {"verdict": found.verdict, "n_windows_needed": found.n_windows_needed}
    return {**derived, **dataclasses.asdict(found)}


def _context_lines(found: "ContextBenefit", n_asked: int) -> list[str]:
    verdict = {
        "benefit": "nats per token that the tokens further back than a distance are worth",
        "flat": "flat: no distance is of any use, so far as these windows tell",
        "undecided": f"undecided: {found.n_windows} windows cannot show any benefit, "
        f"{found.n_windows_needed} would decide",
    }[found.verdict]
    targets = f"{found.n_targets} targets" if found.n_targets > 1 else "target"
    capped = ", all that the split holds" if found.n_windows < n_asked else ""
    return [
        f"{found.loss_nats:.4f} nats/token with all of {found.n_sites} tokens: the last "
        f"{targets} of {found.n_windows} windows{capped}",
        verdict,
        f"{'distance':>9}  {'against a cut':>29}  {'against a shuffle':>29}",
        *(
            f"{one.distance:>9,}  {_with_bounds(one.over_cut):>29}  "
            f"{_with_bounds(one.over_shuffled):>29}"
            for one in found.benefits
        ),
    ]


def _with_bounds(worth: "Worth") -> str:
    mean, low, high = worth.shown.mean, worth.shown.low, worth.shown.high
    mark = "*" if worth.is_benefit else " "
    if low is None or high is None:
        return f"{mean:+.4f}{mark}"
    return f"{mean:+.4f}{mark} [{low:+.4f}, {high:+.4f}]"
