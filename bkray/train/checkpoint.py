"""Checkpoints: one file that holds all that the next step depends on.

A trial keeps the last one, the one before it in case that one is damaged, and the best one.
"""

import os
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from bkray.atomic import replace
from bkray.errors import ResumeError
from bkray.stability import Health, Norms

FOLDER = "checkpoints"
NAME, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"

ANEW = "; began again from the start"
"""What a trial without a checkpoint that can be read does."""

RngState = dict[str, Any]
State = dict[str, Any]
"""What a checkpoint holds: tensors, plain numbers, texts, and containers of them."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was seen at the present length of a ladder; a trial without one has a single length."""

    norms: Norms = field(default_factory=Norms)
    tokens: int = 0
    train_seconds: float = 0.0
    nan_count: int = 0
    """Steps whose loss or gradient norm was not finite."""
    spikes_before: int = 0


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a trial is: plain numbers, all of them in the checkpoint."""

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    best_val_loss_nats: float | None = None
    final_val_loss_nats: float | None = None
    norms: Norms = field(default_factory=Norms)
    """Gradient norms before clipping."""
    interventions: int = 0
    """Spikes answered by ``train.on_spike``."""
    precise_mixers: list[str] = field(default_factory=list)
    """Names of those that scan in float64 since their condition number passed the threshold."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the last evaluation said of the depth policy, under full names."""
    health: Health = field(default_factory=Health)
    tally: Tally = field(default_factory=Tally)


class Loaded(NamedTuple):
    """A checkpoint as read, if there is one to go on from; and what the user should know of it."""

    state: State | None
    warning: str = ""


def rng_state() -> RngState:
    """Return the state of this process's random numbers, on the CPU and on its own GPU."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def state_of(
    *,
    trial_id: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches_state: dict[str, Any],
    progress: Progress,
    load_LE: Tensor | None,
    rng: Sequence[RngState],
) -> State:
    """Return what a checkpoint holds; the tensors are those of the model, not copies.

    ``rng`` holds the random numbers of every process that trains, by rank.
    """
    return {
        "trial_id": trial_id,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "batches": batches_state,
        "progress": asdict(progress),
        "load_LE": load_LE,
        "rng": list(rng),
    }


def write(path: Path, state: State) -> None:
    """Write a checkpoint in one piece: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace(path) as temporary:
        torch.save(state, temporary)


def save(folder: Path, state: State, *, last: bool = True, best: bool = False) -> None:
    """Write ``best.pt``, ``last.pt`` or both; what was the last becomes ``previous.pt``.

    The best comes first: a kill in between leaves a last one that does not know of it yet.
    """
    if best:
        write(folder / BEST, state)
    if last and (folder / NAME).exists():
        os.replace(folder / NAME, folder / PREVIOUS)
    if last and best:
        with replace(folder / NAME) as temporary:
            os.link(folder / BEST, temporary)  # no second copy on disk
    elif last:
        write(folder / NAME, state)


def load(folder: Path, trial_id: str) -> Loaded:
    """Return the last checkpoint, or the one before where that is damaged.

    Without one that can be read the trial begins again: its steps are the same ones.

    Raises:
        ResumeError: the checkpoint is another trial's.
    """
    damages = []
    for path in (folder / NAME, folder / PREVIOUS):
        if path.exists():
            try:
                state = read(path)
            except ResumeError as damage:
                damages.append(str(damage))
                continue
            _check_owner(path, state, trial_id)
            gone_back = f"{damages[0]}; went on from {path.name}" if damages else ""
            return Loaded(state, gone_back)
    return Loaded(None, f"{'; '.join(damages)}{ANEW}" if damages else "")


def set_damaged_aside(folder: Path) -> None:
    """Rename what cannot be read, so that it takes no good checkpoint's place."""
    for path in (folder / NAME, folder / PREVIOUS):
        if path.exists() and not is_whole(path):
            os.replace(path, path.with_name(f"damaged-{path.name}"))


def read(path: Path) -> State:
    """Return what a checkpoint holds, on the CPU; every byte is checked, no code of it is run.

    Raises:
        ResumeError: the file is damaged.
    """
    try:
        _check_sums(path)
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, BadZipFile, pickle.UnpicklingError) as error:
        raise ResumeError(f"{path} cannot be read ({error})") from error
    return state


def is_whole(path: Path) -> bool:
    """Say whether a checkpoint can be read."""
    try:
        read(path)
    except ResumeError:
        return False
    return True


def restore(
    state: State, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int = 0
) -> tuple[Progress, Tensor | None]:
    """Put weights, optimizer and random numbers back; return progress and the experts' load.

    A process whose ``rank`` the interrupted team did not have keeps its own random numbers.
    """
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if rank < len(state["rng"]):
        rng = state["rng"][rank]
        torch.set_rng_state(rng["torch"])
        if rng["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(rng["cuda"])
    device = next(model.parameters()).device
    load_LE = state["load_LE"]
    saved = dict(state["progress"])
    health, norms = Health(**saved["health"]), Norms(**saved["norms"])
    tally = Tally(**{**saved["tally"], "norms": Norms(**saved["tally"]["norms"])})
    progress = Progress(**{**saved, "health": health, "norms": norms, "tally": tally})
    return progress, None if load_LE is None else load_LE.to(device)


def _check_owner(path: Path, state: State, trial_id: str) -> None:
    if state["trial_id"] != trial_id:
        raise ResumeError(
            f"{path} belongs to trial {state['trial_id']}, not to {trial_id}: its config, data or "
            "package version is another one; choose another --out, or delete the folder"
        )


def _check_sums(path: Path) -> None:
    """Raise ``BadZipFile`` where a byte is not as it was written: ``torch.load`` does not look."""
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise BadZipFile(f"{damaged} fails its checksum")
