"""Which domain comes next."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillhouse.recipe.base import Config


class ProportionalMixture(Config):
    """Each domain by its share of the training tokens."""

    type: Literal["proportional"] = "proportional"
    interval_steps: int | None = Field(default=None, ge=1)
    """Draw plans of so many steps, as DDK does; None: plain shuffled epochs."""


class IntervalMixture(Config):
    interval_steps: int = Field(default=1000, ge=1)
    """Steps drawn at one time (DDK's K)."""


class FollowingMixture(IntervalMixture):
    validation_tokens_per_domain: int | None = Field(default=None, ge=1)
    """Held-out tokens that drive the weights; None: as many as cost at most 3 % of the training time."""
    max_intervals: int | None = Field(default=None, ge=1)
    stop_discrepancy: float | None = Field(default=None, ge=0)
    """Stop when the largest ratio is at most 1 + this in two intervals in a row (0.02 is usual); None: off."""


class EqualMixture(IntervalMixture):
    """Every domain alike, in tokens."""

    type: Literal["equal"]


class FixedMixture(IntervalMixture):
    type: Literal["fixed"]
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    """Weight per domain; they sum to 1, and 0 leaves a domain out."""


class DoReMiMixture(IntervalMixture):
    """The weights that a DoReMi proxy found (arXiv 2305.10429), fixed for the run."""

    type: Literal["doremi"]
    weights_from: str = Field(min_length=1)
    """Run directory of the proxy, or its `doremi_weights.json`."""


class DDKMixture(FollowingMixture):
    """Domains in which the student lags its teacher more are drawn more (DDK, arXiv 2407.16154, Eq. 1 and 2)."""

    type: Literal["ddk"]
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of Eq. 2 that follows the ratios of perplexities; the rest is uniform."""


class UnsmoothedDDKMixture(FollowingMixture):
    """DDK's ablation: Eq. 1 afresh in every interval, no memory, no floor."""

    type: Literal["ddk_unsmoothed"]


MixtureConfig = Annotated[
    ProportionalMixture | EqualMixture | FixedMixture | DoReMiMixture | DDKMixture | UnsmoothedDDKMixture,
    Field(discriminator="type"),
]
