"""Tensors in the containers that modules take and give, and that states are made of."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def real_tensors(value: Any, label: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of real numbers that are not empty, each with its place, as ``[0].up``."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield label, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from real_tensors(part, f"{label}[{key!r}]")
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", None)
        for i, part in enumerate(value):
            yield from real_tensors(part, f"{label}.{names[i]}" if names else f"{label}[{i}]")


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the same containers with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)((key, mapped(part, change)) for key, part in value.items())
    if isinstance(value, tuple | list):
        parts = [mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
