"""A stage: rows, objective, mixture and optimisation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.recipe.base import Config
from stillhouse.recipe.data import SourceConfig
from stillhouse.recipe.mixtures import MixtureConfig, ProportionalMixture
from stillhouse.recipe.objectives import ObjectiveConfig
from stillhouse.recipe.optimisation import OptimisationConfig


class StageData(Config):
    """Training rows of one stage; how they are read, and what is held out, is the recipe's ``data``."""

    train: tuple[SourceConfig, ...] = Field(min_length=1)
    when_empty: Literal["error", "skip"] = "error"
    """`skip` leaves the stage out when no document is left, and says so in the result."""


class StageConfig(Config):
    name: str = Field(default="main", pattern=r"^[A-Za-z0-9_-]+$")
    data: StageData | None = None
    """None: the recipe's training rows."""
    optimizer: Literal["fresh", "continued"] = "fresh"
    """`continued` takes over the moments of the stage before; weights are always taken over."""
    objective: ObjectiveConfig
    mixture: MixtureConfig = ProportionalMixture()
    optimisation: OptimisationConfig = OptimisationConfig()
