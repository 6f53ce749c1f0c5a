from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.study.analysis.intervals import (
    paired_differences,
    paired_interval,
    t_interval,
    wilson_interval,
)


def test_student_t_of_three_seeds() -> None:
    # mean 2, sd 1, se 1/sqrt(3); t_{.975, 2} = 4.302653
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.standard_error == pytest.approx(1 / math.sqrt(3))
    assert interval.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert interval.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert interval.source == "seeds"
    assert interval.sign == 0


def test_one_seed_has_no_interval() -> None:
    interval = t_interval([0.7])
    assert (interval.mean, interval.low, interval.high, interval.sign) == (0.7, None, None, 0)


def test_no_value_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        t_interval([])


def test_pairs_are_matched_by_seed_and_lonely_seeds_left_out() -> None:
    first, second = {0: 1.0, 1: 2.0, 2: 9.0}, {2: 8.5, 1: 1.0, 7: 0.0}
    assert paired_differences(first, second) == [1.0, 0.5]
    assert paired_interval({0: 1.0}, {1: 1.0}) is None


def test_pairing_takes_out_what_the_seeds_share() -> None:
    # Unpaired the spread of 10 would drown the difference of 0.1; the paired spread is 0.01.
    first, second = {0: 0.0, 1: 10.0, 2: 20.0}, {0: -0.09, 1: 9.90, 2: 19.89}
    interval = paired_interval(first, second)
    assert interval is not None
    assert interval.mean == pytest.approx(0.1)
    assert interval.sign == 1


def test_wilson_by_hand() -> None:
    # p = 8/10, z = 1.959964: centre (.8 + z^2/20) / (1 + z^2/10) = .992073/1.384146 = .716740,
    # half z/1.384146 * sqrt(.16/10 + z^2/400) = 1.416010 * sqrt(.016 + .0096036) = .226578
    interval = wilson_interval(8, 10)
    assert interval.mean == 0.8
    assert interval.low == pytest.approx(0.716740 - 0.226578, abs=1e-5)
    assert interval.high == pytest.approx(0.716740 + 0.226578, abs=1e-5)


@given(st.integers(1, 50).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_stays_in_bounds_and_holds_the_share(counts: tuple[int, int]) -> None:
    interval = wilson_interval(*counts)
    assert interval.low is not None
    assert interval.high is not None
    assert 0 <= interval.low <= interval.mean + 1e-12
    assert interval.mean - 1e-12 <= interval.high <= 1


@pytest.mark.parametrize("counts", [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not a share"):
        wilson_interval(*counts)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(-3, 3))
def test_shifting_all_seeds_shifts_the_interval(numbers: list[float], shift: float) -> None:
    plain, moved = t_interval(numbers), t_interval([v + shift for v in numbers])
    assert plain.low is not None
    assert moved.low is not None
    assert moved.low - plain.low == pytest.approx(shift, abs=1e-9)
