"""What every part of a recipe is: frozen, with bounds, and without unknown keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """Frozen; unknown keys are refused; a field's meaning is the string under it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
