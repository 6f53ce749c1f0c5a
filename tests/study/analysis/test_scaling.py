from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_rows import SIZES, kd, sft

from stillhouse.study.analysis.scaling import fit_grid, fit_power_law


@pytest.mark.parametrize(("curve", "truth"), [(sft, (1.80, 8.0, 0.35)), (kd, (1.84, 3.0, 0.30))])
def test_fits_recover_the_worked_parameters(curve: object, truth: tuple[float, float, float]) -> None:
    fit = fit_power_law(SIZES, [curve(d) for d in SIZES])  # type: ignore[operator]
    assert (fit.floor, fit.amplitude, fit.alpha) == pytest.approx(truth, rel=1e-6)
    assert fit.rms < 1e-10
    assert not fit.at_bound
    assert fit.at(5e4) == pytest.approx(curve(5e4))  # type: ignore[operator]


def test_slope_is_the_derivative_in_log_size() -> None:
    fit = fit_power_law(SIZES, [sft(d) for d in SIZES])
    step = 1e-6
    numeric = (fit.at(1e5 * np.exp(step)) - fit.at(1e5 * np.exp(-step))) / (2 * step)
    assert fit.slope(1e5) == pytest.approx(numeric, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 3), st.floats(0.2, 5), st.floats(0.1, 1.2), st.floats(1, 1e5))
def test_any_curve_within_the_range_is_recovered(floor: float, drop: float, alpha: float, smallest: float) -> None:
    # ``drop`` is A * D^-alpha at the smallest size, so that the curve is not flat to begin with.
    sizes = [smallest * 3**i for i in range(6)]
    losses = [floor + drop * (d / smallest) ** -alpha for d in sizes]
    fit = fit_power_law(sizes, losses)
    assert fit.alpha == pytest.approx(alpha, rel=1e-3)
    assert fit.floor == pytest.approx(floor, rel=1e-3)
    assert [fit.at(d) for d in sizes] == pytest.approx(losses, rel=1e-6)


def test_grid_alone_is_close_and_independent_of_the_other_curves() -> None:
    losses = np.array([[sft(d) for d in SIZES], [kd(d) for d in SIZES], [2.0] * 5])
    floors, amplitudes, alphas = fit_grid(SIZES, losses)
    assert floors[:2] == pytest.approx([1.80, 1.84], abs=1e-4)
    assert amplitudes[:2] == pytest.approx([8.0, 3.0], rel=1e-3)
    assert alphas[:2] == pytest.approx([0.35, 0.30], abs=1e-4)
    alone = fit_grid(SIZES, losses[1:2])
    assert (alone[0][0], alone[2][0]) == (floors[1], alphas[1])


def test_losses_that_do_not_fall_give_a_constant() -> None:
    fit = fit_power_law(SIZES, [2.0, 2.1, 2.2, 2.3, 2.4])
    assert (fit.floor, fit.amplitude) == (pytest.approx(2.2), 0.0)
    assert fit.slope(1e5) == 0.0


def test_a_curve_that_wants_a_floor_below_zero_is_marked() -> None:
    fit = fit_power_law(SIZES, [5.0, 4.0, 3.0, 2.0, 1.0])
    assert fit.floor >= 0
    assert fit.at_bound


def test_huber_ignores_an_outlying_size() -> None:
    sizes = [1e4 * 2**i for i in range(9)]
    losses = [sft(d) for d in sizes]
    losses[4] += 0.3
    squares, robust = fit_power_law(sizes, losses), fit_power_law(sizes, losses, huber_delta=0.001)
    error = [max(abs(f.at(d) - sft(d)) for d in sizes) for f in (squares, robust)]
    assert error[1] < 0.25 * error[0]


@pytest.mark.parametrize(
    ("sizes", "losses", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], "three sizes"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "three sizes"),
        ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], "positive"),
        ([1.0, 2.0, 3.0], [1.0, float("nan"), 1.0], "finite"),
    ],
)
def test_bad_input_is_refused(sizes: list[float], losses: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_power_law(sizes, losses)
