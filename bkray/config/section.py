"""What all sections of a config have in common."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen and strict; ``None`` means that a knob does nothing here."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def beside_lengths(section: str, given: Mapping[str, Any], example: str) -> dict[str, Any]:
    """Return what is given of a section whose other knobs act beside its ``lengths`` alone.

    Raises:
        ValueError: a knob is given without them.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen and "lengths" not in chosen:
        name = next(iter(chosen))
        raise ValueError(
            f"{section}.{name} does nothing without {section}.lengths: give {example}"
        )
    if isinstance(chosen.get("lengths"), int):  # a single one, as a command line reads it
        chosen["lengths"] = str(chosen["lengths"])
    return chosen


def whole_numbers(listed: str | None) -> tuple[int, ...]:
    """Return ``128,512`` as numbers; empty without any."""
    return tuple(int(n) for n in listed.split(",")) if listed else ()
