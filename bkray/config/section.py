"""What all sections of a config have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen and strict; ``None`` means that a knob does nothing here."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
