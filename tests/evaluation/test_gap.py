"""The share of the gap to the teacher that distillation closed."""

from __future__ import annotations

import pytest

from stillhouse.evaluation.gap import gap_recovered


def test_by_hand() -> None:
    assert gap_recovered(0.5, 0.4, 0.6) == pytest.approx(0.5)  # .1 of .2
    assert gap_recovered(0.7, 0.4, 0.6) == pytest.approx(1.5)  # better than the teacher
    assert gap_recovered(0.3, 0.4, 0.6) == pytest.approx(-0.5)
    assert gap_recovered(0.35, 0.4, 0.3) == pytest.approx(0.5)  # a teacher below SFT: both differences are negative


@pytest.mark.parametrize(("teacher", "defined"), [(0.41, True), (0.39, True), (0.4099, False), (0.3901, False)])
def test_it_is_undefined_below_one_point(teacher: float, defined: bool) -> None:
    assert (gap_recovered(0.45, 0.4, teacher) is not None) is defined
