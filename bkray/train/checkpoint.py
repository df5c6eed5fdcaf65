"""Checkpoints: one file that holds all that the next step depends on."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from bkray.atomic import replace
from bkray.errors import ResumeError
from bkray.stability import Health

NAME = "last.pt"


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a trial is: plain numbers, all of them in the checkpoint."""

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    best_val_loss_nats: float | None = None
    final_val_loss_nats: float | None = None
    norm_sum: float = 0.0
    norm_square_sum: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    """What the last evaluation said of the depth policy, under full names."""
    health: Health = field(default_factory=Health)


def save(
    folder: Path,
    *,
    trial_id: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches_state: dict[str, Any],
    progress: Progress,
    load_LE: Tensor | None,
) -> None:
    """Write ``folder/last.pt`` in one piece: a kill leaves the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "trial_id": trial_id,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "batches": batches_state,
        "progress": asdict(progress),
        "load_LE": load_LE,
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with replace(folder / NAME) as temporary:
        torch.save(state, temporary)


def load(folder: Path, trial_id: str) -> dict[str, Any] | None:
    """Return what was saved, or ``None`` where nothing was.

    Raises:
        ResumeError: the checkpoint is another trial's, or damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        _check_sums(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, BadZipFile) as error:
        raise ResumeError(f"{path} cannot be read ({error}): delete it to start again") from error
    if state["trial_id"] != trial_id:
        raise ResumeError(
            f"{path} belongs to trial {state['trial_id']}, not to {trial_id}: its config, data or "
            "package version is another one; choose another --out, or delete the folder"
        )
    return state


def _check_sums(path: Path) -> None:
    """Raise ``BadZipFile`` where a byte is not as it was written: ``torch.load`` does not look."""
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise BadZipFile(f"{damaged} fails its checksum")


def restore(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, Tensor | None]:
    """Put weights, optimizer and random numbers back; return progress and the experts' load."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    device = next(model.parameters()).device
    load_LE = state["load_LE"]
    saved = dict(state["progress"])
    progress = Progress(**{**saved, "health": Health(**saved["health"])})
    return progress, None if load_LE is None else load_LE.to(device)
