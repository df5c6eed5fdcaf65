"""The lengths that a trial climbs."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from bkray.config.section import Section, beside_lengths, whole_numbers


class LadderConfig(Section):
    """A ladder of sequence lengths, in tokens; the knobs act where ``lengths`` are given.

    A trial climbs its lengths in turn, an equal share of the steps on each; the sweep ``ladder``
    makes the trials: one per length and seed (``independent``), or one for all (``carry``).
    """

    lengths: str | None = Field(None, pattern=r"^\d+(,\d+)*$")
    """``128,512,2048``, growing up to ``model.n_seq``."""
    mode: Literal["independent", "carry"] | None = None
    lr_rule: Literal["given", "transfer", "search"] | None = None
    """Learning rate: as given; searched at the shortest length and taken over, with a test at the
    longest; or searched at every length. One model that climbs has the given one."""
    batch: Literal["tokens", "rows"] | None = None
    """What all lengths have in common, per step; ``train.batch_size`` is that of the longest.
    Whole rows of a length that does not divide it hold nearly as many tokens."""
    monitor: Literal["given", "both"] | None = None
    """``both`` for every trial of the sweep once with ``train.monitor`` and once without."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        chosen = beside_lengths("ladder", given, "128,512,..")
        rule = chosen.get("lr_rule", "given")
        if chosen.get("mode") == "carry" and rule != "given":
            raise ValueError(
                f"ladder.lr_rule={rule} does nothing with ladder.mode=carry: one model climbs at "
                "optimizer.lr; leave one of them out"
            )
        defaults = {
            "mode": "independent",
            "lr_rule": "given",
            "batch": "tokens",
            "monitor": "given",
        }
        return {**defaults, **chosen} if chosen else chosen

    @property
    def rungs(self) -> tuple[int, ...]:
        """The lengths as numbers; empty without any."""
        return whole_numbers(self.lengths)
