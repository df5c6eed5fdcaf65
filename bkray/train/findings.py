"""What is known of a divergence: the folder ``forensics/`` as values, read without torch.

``snapshot.pt`` is a checkpoint of the last good state, ``record.json`` the last steps, and
``diagnosis.json`` what was found when those since the snapshot were repeated.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bkray.atomic import write_json
from bkray.errors import ResumeError
from bkray.stability import Verdict

FOLDER = "forensics"
SNAPSHOT, RECORD, DIAGNOSIS = "snapshot.pt", "record.json", "diagnosis.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """One step: its numbers, and where its batch came from."""

    step: int
    loss_nats: float
    grad_norm: float
    block_norms: tuple[float, ...]
    masked: bool
    batch: dict[str, int]
    """State of the batches before this one was taken: epoch and position."""
    starts: tuple[int, ...]
    """For each row of the batch, the token of the training split that it begins with."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss_nats) and math.isfinite(self.grad_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The last steps of a trial, and all that is needed to take those since the snapshot again."""

    verdict: Verdict
    snapshot_step: int
    split: int
    """Parts that each micro-batch of the config was cut into."""
    blocks: tuple[str, ...]
    steps: tuple[Remembered, ...]

    @property
    def to_repeat(self) -> tuple[Remembered, ...]:
        """The steps after the snapshot, up to the one that the verdict names if it is there."""
        since = [one for one in self.steps if one.step > self.snapshot_step]
        known = any(one.step == self.verdict.step for one in since)
        last = self.verdict.step if known else math.inf
        return tuple(one for one in since if one.step <= last)

    @property
    def is_finite(self) -> bool:
        """Whether the trial diverged with nothing but finite numbers."""
        return self.verdict.rule not in ("nonfinite", "validation")

    @property
    def is_hidden(self) -> bool:
        """Whether an activation alone was not finite: its step may be any since the snapshot."""
        repeated = self.to_repeat
        return self.verdict.rule == "nonfinite" and bool(repeated) and repeated[-1].is_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One token of a batch, and the text around it."""

    row: int
    """In the whole batch; of the validation windows in a validation pass."""
    position: int
    """In the row, from 0."""
    n_tokens: int
    """Tokens of the batch at which the same tensor is not finite, as far as one process saw."""
    before: str
    token: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitudes:
    """Of one block, at the snapshot and at the end: largest output, gradient norm."""

    activation_before: float
    activation: float
    grad_norm_before: float
    grad_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Where numbers grew that stayed finite. A field is ``None`` where nothing did.

    ``quantity`` (``activation`` or ``gradient norm``) of ``block`` was the first to reach
    ``factor`` times what it was at the snapshot, at ``step``; the loss rose most from the step
    before ``jump_step`` to that step.
    """

    step: int | None = None
    block: str | None = None
    quantity: str | None = None
    factor: float | None = None
    jump_step: int | None = None
    jump_from: float | None = None
    jump_to: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What broke first when the steps were repeated.

    ``kind`` is ``tensor``: ``tensor`` of ``module`` was the first that was not finite;
    ``overflow``: every tensor was finite and the loss, or the gradient norm of the block
    ``module``, was not; ``growth``: nothing was not finite; ``vanished``: the fault did not come
    again, so that nothing is known of it.
    """

    kind: Literal["tensor", "overflow", "growth", "vanished"]
    step: int
    during: Literal["forward", "backward", "validation"] | None = None
    module: str | None = None
    tensor: str | None = None
    n_nan: int = 0
    n_inf: int = 0
    shape: tuple[int, ...] = ()
    site: Site | None = None
    """``None`` where every token is hit, or the tensor does not say which."""
    batch: Mapping[str, int] | None = None
    """Epoch, position of the batch in the epoch, and in ``first_token`` where in the training
    split the row of ``site`` begins."""
    growth: Growth | None = None
    blocks: Mapping[str, Magnitudes]
    n_repeated: int
    largest_loss_difference: float | None
    """Between a repeated loss and the recorded one, in nats; ``None`` where one is not finite
    and the other is."""

    @property
    def first_bad(self) -> tuple[object, ...]:
        """What a repetition must hit again."""
        grown = (self.growth.step, self.growth.block) if self.growth else ()
        return (self.kind, self.step, self.module, self.tensor, *grown)

    def compared(self) -> str:
        """Return one sentence on whether the repeated steps were the recorded ones."""
        difference = self.largest_loss_difference
        if difference is None:
            return f"repeated {self.n_repeated} steps; a loss is finite where it was not, or not"
        same = "to the last bit" if difference == 0 else f"within {difference:.3g} nats"
        return f"repeated {self.n_repeated} steps; the losses are as recorded {same}"


def write_diagnosis(folder: Path, diagnosis: Diagnosis) -> None:
    """Write ``diagnosis.json`` into the folder ``forensics/``."""
    write_json(folder / DIAGNOSIS, asdict(diagnosis))


def read_record(folder: Path) -> Record:
    """Return what ``record.json`` of the folder ``forensics/`` says; null is NaN.

    Raises:
        ResumeError: it is missing or damaged.
    """
    told = _read(folder / RECORD)
    try:
        steps = tuple(_remembered(one) for one in told["steps"])
        return Record(
            verdict=Verdict(**told["verdict"]),
            snapshot_step=int(told["snapshot_step"]),
            split=int(told["split"]),
            blocks=tuple(told["blocks"]),
            steps=steps,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / RECORD, repr(error)) from error


def read_diagnosis(folder: Path) -> Diagnosis | None:
    """Return what ``diagnosis.json`` says; ``None`` where nothing could be found out.

    Raises:
        ResumeError: it is damaged.
    """
    path = folder / DIAGNOSIS
    if not path.exists():
        return None
    told = _read(path)
    try:
        site, growth = told.pop("site"), told.pop("growth")
        blocks = {
            name: Magnitudes(**{key: _number(value) for key, value in block.items()})
            for name, block in told.pop("blocks").items()
        }
        return Diagnosis(
            **{**told, "shape": tuple(told["shape"])},
            site=None if site is None else Site(**site),
            growth=None if growth is None else Growth(**growth),
            blocks=blocks,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, repr(error)) from error


def _remembered(told: Mapping[str, Any]) -> Remembered:
    return Remembered(
        step=int(told["step"]),
        loss_nats=_number(told["loss_nats"]),
        grad_norm=_number(told["grad_norm"]),
        block_norms=tuple(_number(norm) for norm in told["block_norms"]),
        masked=bool(told["masked"]),
        batch={"epoch": int(told["batch"]["epoch"]), "position": int(told["batch"]["position"])},
        starts=tuple(int(start) for start in told["starts"]),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(told, dict):
        raise _damaged(path, "no JSON object")
    return told


def _damaged(path: Path, why: str) -> ResumeError:
    return ResumeError(f"{path} cannot be read ({why}): the divergence can no longer be explained")
