"""Which form of an operation runs where."""

import functools
import importlib.util

import torch


def form_for(device: torch.device) -> str:
    """Return the fast form for tensors of a device: "cpu", "triton" on CUDA, else "torch"."""
    if device.type == "cpu":
        return "cpu"
    return "triton" if device.type == "cuda" and _has_triton() else "torch"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
