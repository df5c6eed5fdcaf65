"""The verb that sweeps inference knobs of one checkpoint: ``frontier``."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkray.atomic import write_json
from bkray.cli.words import AsJson, print_json
from bkray.sinks.sink import Null
from bkray.sweep import Sweep

if TYPE_CHECKING:
    from bkray.train.frontier import BinsPoint, Frontier, LengthFrontier, StopFrontier
    from bkray.train.verdict import AtInference, Matrix

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


class DropsStale:
    """A view under which a sweep that trains anything more loses the verdict on what it was."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE

    def trial(self, trial_id: str) -> Null:
        self._file.unlink(missing_ok=True)
        return Null()

    def close(self) -> None:
        pass


def sweep_checkpoints(
    folder: Path, sweep: Sweep, searched: Sequence[str], as_json: bool
) -> "AtInference | None":
    """Sweep and show what the sweep has at inference; ``None`` where Ctrl-C ended it."""
    try:
        from bkray.cluster.at_inference import at_inference, n_checkpoints

        if not as_json:
            print(
                f"\nsweeping {n_checkpoints(folder, sweep.at_inference)} checkpoints", flush=True
            )
        found = at_inference(folder, sweep, searched)
    except KeyboardInterrupt:
        return None
    if not as_json:
        print(*sweep_lines(found), sep="\n")
    return found


def sweep_lines(found: "AtInference") -> Iterator[str]:
    """Yield what a sweep with ``--frontier`` found, and last what may be concluded."""
    from bkray.train.verdict import knob_words

    yield f"{found.knob} swept from {len(found.models)} checkpoints; the curve of each: {FILE}"
    for model in found.models:
        verdict = "allowed" if model.is_allowed else "too far from the truth"
        yield (
            f"  {knob_words(model.knobs)}seed={model.seed}: trained at {model.trained:g}, "
            f"largest gap {model.largest_gap_nats:.4f} nats, {verdict}"
        )
    if found.matrix is not None:
        yield from _matrix_lines(found.matrix)
    if found.front:
        yield "best of them by layers and loss, true evaluations, means over seeds"
        for point in found.front:
            layers, loss, *rest = point.items()
            at = knob_words(dict(rest))
            yield f"  layers {layers[1]:.3f}  loss {loss[1]:.4f} nats  {at.rstrip()}"
    yield from (f"note: {note}" for note in found.notes)
    yield f"verdict: {found.verdict}"


def _matrix_lines(matrix: "Matrix") -> Iterator[str]:
    from bkray.train.verdict import knob_words

    n_seeds = min(cell.n_seeds for cell in matrix.cells)
    at = knob_words(matrix.knobs)
    yield f"trained by tested, {at}seeds {n_seeds}: loss in nats @ layers"
    tested = sorted({cell.tested for cell in matrix.cells})
    yield f"  {'trained':>9}" + "".join(f"  {f'tested at {value:g}':>16}" for value in tested)
    for trained in sorted({cell.trained for cell in matrix.cells}):
        row = [cell for cell in matrix.cells if cell.trained == trained]
        cells = [f"{cell.loss_nats:.4f} @ {cell.avg_layers:.3f}" for cell in row]
        yield f"  {trained:>9g}" + "".join(f"  {words:>16}" for words in cells)
    for cost in matrix.costs:
        lost = "unknown, it never runs as many" if cost.nats is None else f"{cost.nats:+.4f} nats"
        yield f"  against one trained at {cost.value:g}, with as many layers: {lost}"
