"""What a trial says while it runs: values, made by ``trial.run``, read by sinks and the tuner.

Each event turns into rows keyed by (kind, step, split, name); with trial id and attempt in front
they are the rows of the Parquet files and the metrics of MLflow, so names follow the MLflow
conventions: ``train/ val/ best/ final/ stability/ act/ moe/ seq<N>/ speed/ system/``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

OUTCOMES = ("ok", "pruned", "diverged", "oom", "failed", "interrupted")

_GRAVEST_FIRST = ("diverged", "oom", "failed", "interrupted", "pruned", "ok")


def outcome_over_seeds(outcomes: Iterable[str]) -> str:
    """Return the outcome of a configuration from those of its seeds, at least one: the gravest.

    A seed that diverged makes the whole configuration infeasible, whatever became of the others.
    """
    return min(outcomes, key=_GRAVEST_FIRST.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted:
    """First event of every attempt. ``config`` is flat: config path to resolved value."""

    trial_id: str
    sweep: str
    arm: str
    seed: int
    attempt: int
    config: Mapping[str, Any]
    n_params: int
    causal: bool
    data_hash: str
    step: int = 0
    split: int = 1
    """Micro-batches of the config that this attempt cuts each of its own into, to save memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsDone:
    """At most 16 optimizer steps, copied from the device at once; the last of them is ``step``.

    ``loss_nats`` (cross-entropy per token) and ``grad_norm`` (before clipping) hold one number per
    step. ``tokens`` counts from the first step of the trial, ``window_seconds`` is this window
    alone. ``metrics`` are means over the window, under their full names. ``masked`` are the steps
    that changed no parameter: those that were not finite, and those that a policy skipped.
    ``block_norms`` holds each block's share of the gradient norm, one number per step, and
    ``activations`` the largest magnitude of each block's output in the last step.
    """

    step: int
    tokens: int
    loss_nats: tuple[float, ...]
    grad_norm: tuple[float, ...]
    lr: float
    window_seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    masked: tuple[int, ...] = ()
    block_norms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    activations: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalDone:
    """Loss in nats per token on the fixed windows of ``split`` (``val`` or ``test``)."""

    step: int
    tokens: int
    split: str
    loss_nats: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RungDone:
    """All steps at one length of a ladder are taken, or it diverged there.

    ``metrics`` are those of this length alone, without the ``seq<N>/`` in front.
    """

    step: int
    n_seq: int
    diverged: bool
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellDone:
    """What a trained model comes to on rows of ``n_eval`` tokens, read by one strategy.

    ``metrics`` are those of this cell alone, without the ``mismatch/<n_eval>/<strategy>/`` in
    front; there are none where the model cannot follow the strategy at all.
    """

    step: int
    n_eval: int
    strategy: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a clock saw in evaluation mode, under full names: ``speed/speedup_measured``."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPeak:
    """Most memory held so far: resident set on a CPU, allocated on a GPU."""

    step: int
    peak_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spiked:
    """The loss of ``step`` is ``ratio`` times what was to be expected.

    By the rule ``doubled`` that is the loss before, and the ratio above 2; by the rule ``robust``
    it is the median of the last steps. ``spike_count`` counts the former alone.
    """

    step: int
    ratio: float
    rule: Literal["doubled", "robust"] = "doubled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """After a spike at ``step`` training goes on from ``to_step``, with other data."""

    step: int
    to_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something the user should know that did not end the trial."""

    step: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """A checkpoint of ``step`` is written next: what was said so far must be on disk before."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnded:
    """Last event of an attempt. ``summary`` holds the trial's columns of ``trials.parquet``."""

    step: int
    outcome: str
    reason: str
    summary: Mapping[str, Any]


Event = (
    TrialStarted
    | StepsDone
    | EvalDone
    | RungDone
    | CellDone
    | Measured
    | MemoryPeak
    | Spiked
    | Rewound
    | Warned
    | Saving
    | TrialEnded
)


class Row(NamedTuple):
    """One number of one event."""

    kind: str
    step: int
    split: str
    name: str
    value: float


def rows(event: Event) -> Iterator[Row]:
    """Yield the numbers of an event; ``TrialStarted``, ``Warned`` and ``Saving`` have none."""
    match event:
        case StepsDone():
            first = event.step - len(event.loss_nats) + 1
            for i, (loss, norm) in enumerate(zip(event.loss_nats, event.grad_norm, strict=True)):
                yield Row("steps", first + i, "train", "train/loss_nats", loss)
                yield Row("steps", first + i, "train", "train/grad_norm", norm)
            numbers = {
                "train/lr": event.lr,
                "train/tokens": float(event.tokens),
                "train/window_seconds": event.window_seconds,
                **event.metrics,
                **{f"stability/grad_norm/{k}": v[-1] for k, v in event.block_norms.items()},
                **{f"stability/activation/{k}": v for k, v in event.activations.items()},
            }
            yield from (Row("steps", event.step, "train", k, v) for k, v in numbers.items())
            yield from (Row("steps", n, "train", "stability/masked", 1.0) for n in event.masked)
        case EvalDone():
            numbers = {f"{event.split}/loss_nats": event.loss_nats, **event.metrics}
            yield from (Row("eval", event.step, event.split, k, v) for k, v in numbers.items())
        case RungDone():
            numbers = {"diverged": float(event.diverged), **event.metrics}
            for name, value in numbers.items():
                yield Row("rung", event.step, "", f"seq{event.n_seq}/{name}", value)
            if "learning_rate" in event.metrics:
                yield Row("rung", event.step, "", "learning_rate", event.metrics["learning_rate"])
        case CellDone():
            numbers = {"applicable": float(bool(event.metrics)), **event.metrics}
            for name, value in numbers.items():
                full = f"mismatch/{event.n_eval}/{event.strategy}/{name}"
                yield Row("cell", event.step, "", full, value)
        case Measured():
            yield from (Row("measured", event.step, "", k, v) for k, v in event.metrics.items())
        case MemoryPeak():
            yield Row("memory", event.step, "", "system/peak_memory_mib", event.peak_mib)
        case Spiked():
            name = "stability/spike_ratio" if event.rule == "doubled" else "stability/robust_spike"
            yield Row("spike", event.step, "train", name, event.ratio)
        case Rewound():
            yield Row("rewind", event.step, "train", "stability/rewound_to", float(event.to_step))
        case TrialEnded():
            for name, value in event.summary.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    yield Row("end", event.step, "", metric_name(name), float(value))
        case TrialStarted() | Warned() | Saving():
            return


def metric_name(column: str) -> str:
    """Return a column's metric: ``best/val_ppl`` for ``best_val_ppl``, else ``final/<column>``."""
    group, _, rest = column.partition("_")
    return f"{group}/{rest}" if group in ("best", "final") else f"final/{column}"
