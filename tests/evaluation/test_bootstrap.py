"""Intervals over items, alone and paired."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.evaluation.bootstrap import bootstrap_interval, paired_bootstrap

A = [float(c) for c in "1101101101"]
B = [float(c) for c in "1001001110"]


def test_paired_difference_by_hand() -> None:
    # a - b = 0 1 0 0 1 0 0 0 -1 1: mean 2/10; squares sum to 4, so the variance is (4 - 10 * .04) / 9 = .4
    # and the standard error sqrt(.4 / 10) = .2.
    paired = paired_bootstrap(A, B)
    assert paired.delta == pytest.approx(0.2)
    assert paired.standard_error == pytest.approx(0.2)
    assert (paired.n, paired.draws) == (10, 10_000)
    low, high = paired.interval
    # The resampled mean has s.d. sqrt(.36 / 10) = .19, so about .2 -+ 1.96 * .19.
    assert low == pytest.approx(-0.2, abs=0.101)
    assert high == pytest.approx(0.6, abs=0.101)


def test_pairing_removes_what_both_share() -> None:
    # Item difficulty varies widely; the difference is .1 at every item, and its interval has no width.
    hard = [float(i) for i in range(10)]
    paired = paired_bootstrap([h + 0.5 for h in hard], hard)
    assert paired.interval == (0.5, 0.5)
    assert paired.standard_error == 0
    low, high = bootstrap_interval(hard)
    assert high - low > 2


def test_the_interval_of_a_share_is_the_binomials() -> None:
    # 60 of 100: the mean of 100 draws has s.d. sqrt(.6 * .4 / 100) = .049, so .6 -+ .096.
    low, high = bootstrap_interval([1.0] * 60 + [0.0] * 40)
    assert low == pytest.approx(0.504, abs=0.011)
    assert high == pytest.approx(0.696, abs=0.011)
    assert bootstrap_interval([1.0] * 60 + [0.0] * 40) == (low, high), "the seed is fixed"
    uneven = [i * 0.37 % 1 for i in range(40)]
    assert bootstrap_interval(uneven, seed=1) != bootstrap_interval(uneven)


def test_weights_make_a_ratio() -> None:
    # Two items, 1 of 1 and 0 of 3: drawn twice each draw is 1, 1/4 or 0 with chances 1/4, 1/2, 1/4.
    assert bootstrap_interval([1.0, 0.0], [1.0, 3.0]) == (0.0, 1.0)
    # Constant ratios leave no doubt, whatever the weights.
    low, high = bootstrap_interval([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert low == high == pytest.approx(0.5)


def test_one_item_and_none() -> None:
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert paired_bootstrap([1.0], [0.0]).standard_error is None
    with pytest.raises(ValueError, match="at least one item"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="same items: 2 against 1"):
        paired_bootstrap([1.0, 0.0], [1.0])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_the_interval_lies_within_the_values_and_moves_with_them(values: list[float]) -> None:
    low, high = bootstrap_interval(values, draws=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    shifted = bootstrap_interval([v + 1 for v in values], draws=200)
    assert np.allclose(shifted, (low + 1, high + 1))
    paired = paired_bootstrap(values, values, draws=50)
    assert (paired.delta, paired.interval) == (0, (0, 0))
    assert paired.standard_error is None or math.isclose(paired.standard_error, 0)
