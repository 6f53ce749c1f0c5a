from __future__ import annotations

import math

import numpy as np
import pytest

from stillhouse.errors import DataError, TrainingError
from stillhouse.mixture.discrepancy import DiscrepancyRatios, DiscrepancyStop, discrepancy_ratio

COUNTS = np.array([10, 10, 10])


def test_ratios_of_methods_section_5() -> None:
    # exp(2.3 - 1.9) = exp(.4), exp(2.7 - 2.1) = exp(.6), exp(1.6 - 1.45) = exp(.15)
    ratios = discrepancy_ratio(np.array([2.3, 2.7, 1.6]), np.array([1.9, 2.1, 1.45]))
    np.testing.assert_allclose(ratios, [1.491825, 1.822119, 1.161834], atol=1e-6)


def test_ratio_stays_finite_at_any_gap() -> None:
    ratios = discrepancy_ratio(np.array([1e308, 0.0]), np.array([0.0, 1e308]))
    np.testing.assert_allclose(ratios, [math.exp(50), math.exp(-50)])


def test_domain_without_validation_tokens_takes_the_mean_first_and_its_last_ratio_later() -> None:
    tracker = DiscrepancyRatios(("a", "b", "c"))
    teacher = np.zeros(3)
    first = tracker.observe(np.log([2.0, 4.0, math.nan]), teacher, np.array([5, 5, 0]))
    np.testing.assert_allclose(first, [2, 4, 3])  # (2 + 4) / 2
    assert math.isnan(tracker.measured[2])  # the report does not show a guess as a measurement
    np.testing.assert_allclose(tracker.observe(np.log([2.0, 4.0, 7.0]), teacher, COUNTS), [2, 4, 7])
    later = tracker.observe(np.log([1.5, math.nan, math.nan]), teacher, np.array([5, 0, 0]))
    np.testing.assert_allclose(later, [1.5, 4, 7])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_nll_names_model_and_domain(bad: float) -> None:
    good = np.array([1.0, 1.0, 1.0])
    broken = np.array([1.0, bad, 1.0])
    with pytest.raises(TrainingError, match=r"student's validation NLL of domain 'b'"):
        DiscrepancyRatios(("a", "b", "c")).observe(broken, good, COUNTS)
    with pytest.raises(TrainingError, match=r"teacher's validation NLL of domain 'b'"):
        DiscrepancyRatios(("a", "b", "c")).observe(good, broken, COUNTS)


def test_a_refused_measurement_changes_nothing() -> None:
    tracker = DiscrepancyRatios(("a", "b"))
    tracker.observe(np.log([2.0, 3.0]), np.zeros(2), np.array([1, 1]))
    with pytest.raises(TrainingError):
        tracker.observe(np.array([9.0, math.nan]), np.zeros(2), np.array([1, 1]))
    np.testing.assert_allclose(tracker.measured, [2, 3])


def test_no_validation_tokens_at_all() -> None:
    with pytest.raises(DataError, match=r"data\.validation: no domain \(a, b\) has a validation token"):
        DiscrepancyRatios(("a", "b")).observe(np.zeros(2), np.zeros(2), np.zeros(2, np.int64))


def test_stop_needs_two_intervals_in_a_row() -> None:
    stop = DiscrepancyStop(0.02)
    seen = []
    for worst in (1.02, 1.0201, 1.01, 1.02):  # on the edge, above it, then twice within
        stop.observe(np.array([0.9, worst]))
        seen.append(stop.reached)
    assert seen == [False, False, False, True]


def test_stop_waits_for_a_domain_that_was_never_measured() -> None:
    stop = DiscrepancyStop(0.02)
    for _ in range(3):
        stop.observe(np.array([1.0, math.nan]))
    assert not stop.reached
