"""The verb that sweeps inference knobs of one checkpoint: ``frontier``."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkray.atomic import write_json
from bkray.cli.words import AsJson, print_json

if TYPE_CHECKING:
    from bkray.train.frontier import BinsPoint, Frontier, LengthFrontier, StopFrontier

FILE = "frontier.json"


def frontier(
    folder: Annotated[Path, typer.Argument(metavar="TRIAL_DIR")], as_json: AsJson = False
) -> int:
    """Sweep the inference knobs of a trial's checkpoint: length bins, and when a token stops.

    Scored on the windows that training evaluates on. Lengths are exact; the curve over a
    threshold is an estimate, with true evaluations beside it.

    --json prints what frontier.json in the trial's folder holds: "lengths", and "stops", null
    for a model in which no token stops.
    """
    from bkray.train.frontier import frontier as sweep
    from bkray.trial import open_checkpoint

    trial, _ = open_checkpoint(folder)
    found = sweep(trial)
    told = dataclasses.asdict(found)
    write_json(folder / FILE, told)
    if as_json:
        print_json(told)
    else:
        for line in _lines(found):
            print(line)
        print(f"all of it: {folder / FILE}")
    return 0


def _lines(found: "Frontier") -> Iterator[str]:
    yield f"step {found.step}, {found.n_windows} windows of {found.n_seq} tokens"
    yield from _length_lines(found.lengths)
    if found.stops is not None:
        yield ""
        yield from _stop_lines(found.stops)
    yield from (f"note: {note}" for note in found.notes)


def _length_lines(lengths: "LengthFrontier") -> Iterator[str]:
    yield (
        f"best length bins ({lengths.search} search), exact; behind a cut: {lengths.beyond}; "
        "every window takes its best bin, as a perfect predictor would; price: nats per token "
        "that the longest length costs"
    )
    yield (
        f"{'price':>12} {'bins':>4} {'mean length':>11} {'loss nats':>9} {'perplexity':>10}"
        "  speedup by arithmetic, lengths"
    )
    for point in lengths.points:
        yield f"{point.price_nats:>12g} {_row(point)}"
    if lengths.predicted is not None:
        yield f"{'as predicted':>12} {_row(lengths.predicted)}"


def _row(point: "BinsPoint") -> str:
    return (
        f"{len(point.lengths):>4} {point.mean_length:>11.1f} {point.loss_nats:>9.4f} "
        f"{point.ppl:>10.3f}  {point.speedup_estimate:.2f}x {','.join(map(str, point.lengths))}"
    )


def _stop_lines(stops: "StopFrontier") -> Iterator[str]:
    yield (
        f"{stops.knob} (trained at {stops.trained:g}), all lengths uncut; estimate: from one pass "
        f"in which every token runs through all {stops.n_layers} layers"
    )
    yield (
        f"{'threshold':>9}  {'layers true':>11} {'estimate':>8}  {'loss nats true':>14} "
        f"{'estimate':>8} {'gap':>8}  speedup by arithmetic"
    )
    for one in stops.checked:
        true, guess = one.evaluated, one.estimated
        yield (
            f"{true.threshold:>9.4g}  {true.avg_layers:>11.3f} {guess.avg_layers:>8.3f}  "
            f"{true.loss_nats:>14.4f} {guess.loss_nats:>8.4f} {one.gap_nats:>+8.4f}  "
            f"{stops.n_layers / true.avg_layers:.2f}x"
        )
    yield (
        f"largest gap: {stops.largest_gap_nats:.4f} nats; the estimate at "
        f"{len(stops.estimate)} thresholds is in {FILE}"
    )
