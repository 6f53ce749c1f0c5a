"""Schedules and the step's own arithmetic."""

from __future__ import annotations

import pytest

from stillhouse.recipe import OptimisationConfig
from stillhouse.training.step import cosine_learning_rate


def config(**changes: float) -> OptimisationConfig:
    return OptimisationConfig.model_validate(
        {"learning_rate": 1.0, "min_learning_rate_ratio": 0.1, "warmup_fraction": 0.2, **changes}
    )


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    # 0.2 * 10 steps = 2 of warm-up: 1/2, 2/2, then the cosine starts at the peak.
    assert [cosine_learning_rate(s, 10, config()) for s in range(3)] == pytest.approx([0.5, 1.0, 1.0])


def test_the_last_step_is_at_the_floor_and_the_middle_half_way() -> None:
    assert cosine_learning_rate(9, 10, config()) == pytest.approx(0.1)
    # Steps 0..8 without warm-up: step 4 is the middle of the cosine, (1 + 0.1) / 2.
    assert cosine_learning_rate(4, 9, config(warmup_fraction=0.0)) == pytest.approx(0.55)


def test_one_step_trains_at_the_peak() -> None:
    assert cosine_learning_rate(0, 1, config(warmup_fraction=0.0)) == 1.0


def test_a_ratio_of_one_is_a_constant_rate() -> None:
    rates = {cosine_learning_rate(s, 7, config(warmup_fraction=0.0, min_learning_rate_ratio=1.0)) for s in range(7)}
    assert rates == {1.0}
