"""The workers of one trial, and what Ray sets aside for them."""

from dataclasses import dataclass

from bkray.cluster.session import ACCELERATOR, SLOT

_A_TOUCH = 0.001
"""What a worker takes of a kind of GPU, so that a node never runs out of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The Ray Train workers of one trial; all else is per worker.

    ``memory_bytes`` are reserved, not enforced; 0 reserves none. ``accelerator_type`` is Ray's
    name of a kind of GPU, such as ``A10G``; empty takes any.
    """

    workers: int
    threads: int
    gpus: float
    memory_bytes: int = 0
    accelerator_type: str = ""

    @property
    def resources(self) -> dict[str, float]:
        """What Ray sets aside for one worker."""
        needed = {
            "CPU": float(self.threads),
            "GPU": float(self.gpus),
            "memory": float(self.memory_bytes),
        }
        if self.accelerator_type:
            needed[f"{ACCELERATOR}{self.accelerator_type}"] = _A_TOUCH
        return {name: amount for name, amount in needed.items() if amount}

    def needs(self, *, nested: bool) -> dict[str, float]:
        """Return what a trial takes in all; a ``nested`` one takes slots as well."""
        apart = {name: self.workers * amount for name, amount in self.resources.items()}
        return {**apart, SLOT: float(self.workers * self.threads)} if nested else apart
