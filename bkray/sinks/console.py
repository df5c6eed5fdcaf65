"""What the user sees of a sweep: a live table on a terminal, one line per event elsewhere."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bkray.events import (
    CellDone,
    EvalDone,
    Event,
    Rewound,
    RungDone,
    Spiked,
    StepsDone,
    TrialEnded,
    TrialStarted,
    Warned,
)
from bkray.sinks.sink import Sink, trial_label

_REFRESH_SECONDS = 0.25
_LAYERS = "act/avg_layers_executed"
_COLUMNS = ("trial", "step", "train loss", "val loss", "layers", "tokens/s", "outcome")


@dataclass(slots=True)
class _Line:
    """What the table says of a trial; ``None`` where nothing is known yet."""

    label: str = ""
    step: int = 0
    n_steps: int | None = None
    losses: tuple[float, ...] = ()
    """Of the last window's steps, in nats per token."""
    last_step: int = 0
    """Of that window."""
    val_loss_nats: float | None = None
    layers: float | None = None
    tokens_per_second: float | None = None
    outcome: str = ""


class ConsoleView:
    """Shows ``total`` trials, and those that follow from them; ``swept`` are the config paths that
    tell them apart. ``n_done`` of them ended in an earlier process and are only counted.

    Elsewhere than on a terminal it prints when a trial starts, evaluates, spikes, rewinds and
    ends, without control characters. A warning, and what a length of a ladder came to, is a line
    of its own in both.
    """

    def __init__(
        self,
        total: int,
        console: Console | None = None,
        swept: Sequence[str] = (),
        now: Callable[[], float] = time.monotonic,
        n_done: int = 0,
    ) -> None:
        self._console = console or Console()
        self._total = total
        self._n_done = n_done
        self._swept = tuple(swept)
        self._now = now
        self._began = now()
        self._drawn = -_REFRESH_SECONDS
        self._lines: dict[str, _Line] = {}
        on_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False) if on_terminal else None

    def trial(self, trial_id: str) -> Sink:
        if trial_id in self._lines:  # a further attempt
            self._lines[trial_id].outcome = ""
        return _TrialLine(partial(self._take, trial_id), partial(self._leave, trial_id))

    def close(self) -> None:
        if self._live is not None and self._live.is_started:
            self._live.update(self._picture(), refresh=True)
            self._live.stop()

    def _take(self, trial_id: str, event: Event) -> None:
        line = self._lines.setdefault(trial_id, _Line(label=trial_id))
        if isinstance(event, TrialStarted):
            line = self._lines[trial_id] = _started(event, self._swept)
        _note(line, event)
        if self._live is None or isinstance(event, Warned | RungDone):
            self._print(trial_id, line, event)
        else:
            self._draw(self._live)

    def _leave(self, trial_id: str) -> None:
        line = self._lines.get(trial_id)
        if line is not None and not line.outcome:
            line.outcome = "interrupted"

    def _print(self, trial_id: str, line: _Line, event: Event) -> None:
        match event:
            case TrialStarted():
                went_on = f", goes on from step {event.step}" if event.step else ""
                cut = f", micro-batches cut into {event.split}" if event.split > 1 else ""
                what = f"trial {trial_id}, {event.n_params:,} parameters{cut}{went_on}"
                text = f"start  {line.label}: {what}"
            case EvalDone():
                numbers = ", ".join(f"{name} {cell}" for name, cell in _cells(line) if cell)
                text = f"eval   {line.label}: {numbers}"
            case Warned():
                text = f"warn   {line.label}: {event.message}"
            case Spiked(rule="doubled"):
                text = f"spike  {line.label}: {_spike(line, event)}"
            case CellDone():
                text = f"cell   {line.label}: {_cell(event)}"
            case RungDone():
                text = f"rung   {line.label}: {_rung(event)}"
            case Rewound():
                text = f"rewind {line.label}: from step {event.step} to step {event.to_step}"
            case TrialEnded():
                said = event.reason or event.summary.get("advice")
                reason = f" ({said})" if said else ""
                what = f"{event.outcome} at step {event.step}{reason}"
                text = f"end    {line.label}: {what}; {self._summary()}"
            case _:
                return
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _draw(self, live: Live) -> None:
        if not live.is_started:
            live.start()
        if self._now() - self._drawn >= _REFRESH_SECONDS:
            self._drawn = self._now()
            live.update(self._picture(), refresh=True)

    def _picture(self) -> Group:
        table = Table(*_COLUMNS, box=None, pad_edge=False)
        for column in table.columns[1:-1]:
            column.justify = "right"
        for line in self._shown():
            table.add_row(Text(line.label), *(cell for _, cell in _cells(line)), line.outcome)
        return Group(table, Text(self._summary()))

    def _shown(self) -> list[_Line]:
        """Return the running trials and, as far as the screen has room, the last that ended."""
        ended = [line for line in self._lines.values() if line.outcome]
        running = [line for line in self._lines.values() if not line.outcome]
        room = max(0, self._console.height - 4 - len(running))
        return (ended[-room:] if room else []) + running

    def _summary(self) -> str:
        done = sum(bool(line.outcome) for line in self._lines.values())
        running = len(self._lines) - done
        seconds = int(self._now() - self._began)
        elapsed = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        total = max(self._total, self._n_done + len(self._lines))  # others may have followed
        counts = f"{self._n_done + done} done, {running} running, {total} in all"
        return f"{counts}, {elapsed} elapsed"


class _TrialLine:
    def __init__(self, take: Callable[[Event], None], leave: Callable[[], None]) -> None:
        self._take = take
        self._leave = leave

    def __call__(self, event: Event) -> None:
        self._take(event)

    def close(self) -> None:
        self._leave()


def _started(event: TrialStarted, swept: Sequence[str]) -> _Line:
    n_steps = event.config.get("train.steps")
    return _Line(label=trial_label(event, swept), step=event.step, n_steps=n_steps)


def _note(line: _Line, event: Event) -> None:
    line.step = event.step
    match event:
        case StepsDone():
            line.losses, line.last_step = event.loss_nats, event.step
            line.layers = event.metrics.get(_LAYERS, line.layers)
            if event.window_seconds > 0:
                window_tokens = event.tokens / event.step * len(event.loss_nats)
                line.tokens_per_second = window_tokens / event.window_seconds
        case EvalDone():
            line.val_loss_nats = event.loss_nats
            line.layers = event.metrics.get(_LAYERS, line.layers)
        case Rewound():
            line.step = event.to_step
        case TrialEnded():
            line.outcome = event.outcome
        case _:
            pass


def _spike(line: _Line, event: Spiked) -> str:
    """Return a spike in the guides' form; it is in the window that was shown last."""
    place = event.step - line.last_step - 1
    loss = line.losses[place] if -len(line.losses) <= place < 0 else math.nan
    return f"Step {event.step} | Loss {loss:.4f} | SPIKE {event.ratio:.2f}x"


def _rung(event: RungDone) -> str:
    """Return what a length came to, in the guides' form."""
    said = event.metrics
    words = [f"seq {event.n_seq}  Step {event.step}"]
    words.append("DIVERGED" if event.diverged else f"Loss {said['loss']:.4f}")
    if "gradient_norm" in said:
        words.append(f"Grad {said['gradient_norm']:.2f} +- {said['gradient_norm_std']:.2f}")
    n = int(said["spike_count"])
    return " | ".join([*words, f"{n} spike{'' if n == 1 else 's'}"])


def _cell(event: CellDone) -> str:
    """Return what a length came to when it was read by a strategy."""
    named = f"{event.n_eval} tokens by {event.strategy}"
    if not event.metrics:
        return f"{named}: not applicable"
    words = [f"{named}: ppl {event.metrics['ppl']:.3f}"]
    words.append(f"second half {event.metrics['late_ppl']:.3f}")
    return ", ".join([*words, f"recall {event.metrics['recall_long']:.3f}"])


def _cells(line: _Line) -> list[tuple[str, str]]:
    """Return name and text of the columns between trial and outcome."""
    of = f"/{line.n_steps}" if line.n_steps is not None else ""
    texts = [
        f"{line.step}{of}",
        _text(line.losses[-1] if line.losses else None, ".4f"),
        _text(line.val_loss_nats, ".4f"),
        _text(line.layers, ".2f"),
        _text(line.tokens_per_second, ",.0f"),
    ]
    return list(zip(_COLUMNS[1:-1], texts, strict=True))


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
