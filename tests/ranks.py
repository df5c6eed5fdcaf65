"""Trains a trial by several processes on this machine, without Ray."""

import gc
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bkray.train.team import Team

_HEAVY = ["bkray.trial", "torch._dynamo", "torch.nn.parallel"]
"""Imported once by the server that the processes are forked from, not by each of them."""


def in_team(size: int, scratch: Path, work: Callable[..., Any], *given: Any) -> list[Any]:
    """Return what ``work(team, *given)`` returned in each process; it is defined in a module."""
    multiprocessing.set_forkserver_preload(_HEAVY)
    mp.start_processes(_enter, (size, scratch, work, given), size, start_method="forkserver")
    return [pickle.loads((scratch / f"{rank}.pickle").read_bytes()) for rank in range(size)]


def _enter(
    rank: int, size: int, scratch: Path, work: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{scratch}/meet", rank=rank, world_size=size)
    try:
        said = work(Team(rank, size), *given)
    finally:
        gc.collect()  # a synchronised model holds on to the group, in a circle
        dist.destroy_process_group()
    (scratch / f"{rank}.pickle").write_bytes(pickle.dumps(said))
