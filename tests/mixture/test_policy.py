from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import DataError, TrainingError
from stillhouse.mixture.policy import DDKPolicy, Policy, StaticPolicy, ddk_update, ratio_softmax

Floats = npt.NDArray[np.float64]
DOMAINS = ("web", "code", "wiki")
TOKENS = np.array([500, 300, 200])
COUNTS = np.array([100, 100, 100])
TEACHER = np.array([1.9, 2.1, 1.45])
STUDENT = [np.array([2.3, 2.7, 1.6]), np.array([2.2, 2.45, 1.57]), np.array([2.15, 2.35, 1.56])]
ALL = np.ones(3, dtype=np.bool_)


def written_out(log_r: Floats, rho: Floats, alpha: float, active: npt.NDArray[np.bool_]) -> Floats:
    """Eq. 2 as methods.md prints it; returns r, not its logarithm."""
    u = np.where(active, log_r + rho, -np.inf)
    s = np.exp(u - u.max())
    s /= s.sum()
    return np.asarray(np.where(active, alpha * s + (1 - alpha) / active.sum(), 0))


def after(policy: Policy, updates: int) -> Floats:
    for student in STUDENT[:updates]:
        policy.update(student, TEACHER, COUNTS)
    return policy.weights()


def test_equation_1_of_methods_section_5() -> None:
    # exp of [1.491825, 1.822119, 1.161834] = [4.445, 6.185, 3.196], sum 13.826
    rho = np.exp(STUDENT[0] - TEACHER)
    np.testing.assert_allclose(np.exp(ratio_softmax(rho, ALL)), [0.321512, 0.447344, 0.231145], atol=1e-6)


def test_ddk_follows_algorithm_1() -> None:
    # The first interval is a random sample: proportional to the tokens. r_0 enters through psi_1 alone.
    np.testing.assert_allclose(after(DDKPolicy(DOMAINS, TOKENS), 0), [0.5, 0.3, 0.2])
    np.testing.assert_allclose(after(DDKPolicy(DOMAINS, TOKENS), 1), [0.5, 0.3, 0.2])
    np.testing.assert_allclose(after(DDKPolicy(DOMAINS, TOKENS), 2), [0.329710, 0.409777, 0.260513], atol=1e-6)
    np.testing.assert_allclose(after(DDKPolicy(DOMAINS, TOKENS), 3), [0.338432, 0.380144, 0.281424], atol=1e-6)


def test_ddk_unsmoothed_is_equation_1_afresh() -> None:
    policy = DDKPolicy(DOMAINS, TOKENS, smoothed=False)
    np.testing.assert_allclose(after(policy, 1), [0.5, 0.3, 0.2])
    # rho_2 = exp([.25, .25, .11]) = [1.284025, 1.284025, 1.116278]
    np.testing.assert_allclose(
        after(DDKPolicy(DOMAINS, TOKENS, smoothed=False), 3), [0.351424, 0.351424, 0.297152], atol=1e-6
    )


def test_huge_ratio_of_methods_section_5() -> None:
    # psi is all in the first domain: .5 * 1 + .5 / 3 and .5 / 3
    log_r0 = np.log([0.321512, 0.447344, 0.231145])
    weights = np.exp(ddk_update(log_r0, np.array([2500.0, 2.0, 2.0]), 0.5, ALL))
    np.testing.assert_allclose(weights, [0.666667, 0.166667, 0.166667], atol=1e-6)


def test_a_random_student_makes_no_overflow() -> None:
    policy = DDKPolicy(DOMAINS, TOKENS)
    for nll in ([10.3, 2.6, 2.6], [9.0, 1e300, 4.0]):  # perplexity 30,000 against 12, then a loss that exploded
        policy.update(np.array(nll), np.array([2.5, 2.5, 2.5]), COUNTS)
    weights = policy.weights()
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights, [1 / 6, 4 / 6, 1 / 6])


def test_without_a_floor_a_vanished_weight_comes_back() -> None:
    # alpha 1: exp(-2498) is 0 in float64, but its logarithm is kept, so the domain can rise again.
    log_r = ddk_update(np.log(np.full(3, 1 / 3)), np.array([2500.0, 2.0, 2.0]), 1.0, ALL)
    np.testing.assert_allclose(log_r, [0, -2498, -2498])
    np.testing.assert_allclose(ddk_update(log_r, np.array([2.0, 2500.0, 2.0]), 1.0, ALL)[:2], np.log([0.5, 0.5]))


def test_alpha_0_is_uniform_over_active_domains() -> None:
    active = np.array([True, False, True])
    log_r = ddk_update(np.log(np.full(3, 1 / 3)), np.array([3.0, 2.0, 1.0]), 0.0, active)
    np.testing.assert_allclose(np.exp(log_r), [0.5, 0, 0.5])


def test_inactive_domains_stay_at_zero_and_leave_the_floor() -> None:
    policy = DDKPolicy(DOMAINS, np.array([500, 0, 500]), alpha=0.5)
    weights = after(policy, 2)
    assert weights[1] == 0
    assert weights.sum() == pytest.approx(1)
    assert (weights[[0, 2]] >= 0.25).all()  # (1 - alpha) / 2 active domains
    policy.update(STUDENT[2], TEACHER, COUNTS)
    assert policy.weights()[1] == 0


def test_domain_without_validation_tokens_moves_by_the_mean_ratio() -> None:
    counts = np.array([100, 100, 0])
    policy = DDKPolicy(DOMAINS, TOKENS, smoothed=False)
    for student in STUDENT[:2]:
        policy.update(np.append(student[:2], math.nan), TEACHER, counts)
    rho = np.exp(STUDENT[1][:2] - TEACHER[:2])
    expected = np.exp(np.append(rho, rho.mean()))
    np.testing.assert_allclose(policy.weights(), expected / expected.sum())
    assert math.isnan(policy.ratios[2])


def test_nothing_active_or_nothing_finite_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no domain is active"):
        ddk_update(np.zeros(3), np.ones(3), 0.5, np.zeros(3, dtype=np.bool_))
    with pytest.raises(TrainingError, match="no domain is active"):
        ratio_softmax(np.ones(3), np.zeros(3, dtype=np.bool_))
    with pytest.raises(TrainingError, match="no active domain has a finite log weight"):
        ddk_update(np.array([-np.inf, 0.0, -np.inf]), np.ones(3), 0.5, np.array([True, False, True]))
    with pytest.raises(DataError, match="no domain has training documents"):
        DDKPolicy(DOMAINS, np.zeros(3, np.int64))


def test_nan_loss_is_named_and_leaves_the_policy_as_it_was() -> None:
    policy = DDKPolicy(DOMAINS, TOKENS)
    before = after(policy, 2)
    with pytest.raises(TrainingError, match="domain 'code'"):
        policy.update(np.array([2.0, math.nan, 1.5]), TEACHER, COUNTS)
    np.testing.assert_array_equal(policy.weights(), before)


def test_static_weights_never_move_but_ratios_are_reported() -> None:
    policy = StaticPolicy("fixed", DOMAINS, np.array([0.2, 0.3, 0.5]))
    assert np.isnan(policy.ratios).all()
    assert after(policy, 3).tolist() == [0.2, 0.3, 0.5]
    np.testing.assert_allclose(policy.ratios, np.exp(STUDENT[2] - TEACHER))
    policy.weights()[0] = 9.0
    assert policy.weights()[0] == 0.2


ratios_of = st.floats(min_value=1e-3, max_value=3000)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Floats, Floats, float, npt.NDArray[np.bool_]]:
    n = draw(st.integers(1, 8))
    raw = np.array(draw(st.lists(st.floats(1e-6, 1), min_size=n, max_size=n)))
    rho = np.array(draw(st.lists(ratios_of, min_size=n, max_size=n)))
    active = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any)))
    return np.log(raw / raw.sum()), rho, draw(st.floats(0, 0.99)), active


@given(situations())
def test_equation_2_holds_whatever_comes(situation: tuple[Floats, Floats, float, npt.NDArray[np.bool_]]) -> None:
    log_r, rho, alpha, active = situation
    weights = np.exp(ddk_update(log_r, rho, alpha, active))
    np.testing.assert_allclose(weights, written_out(log_r, rho, alpha, active), rtol=1e-9, atol=1e-15)
    assert weights.sum() == pytest.approx(1)
    floor = (1 - alpha) / active.sum()
    assert (weights[active] >= floor * (1 - 1e-9)).all()
    assert (weights[active] <= (alpha + floor) * (1 + 1e-9)).all()
    assert (weights[~active] == 0).all()


@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_domains_does_not_matter(
    situation: tuple[Floats, Floats, float, npt.NDArray[np.bool_]], random: Any
) -> None:
    log_r, rho, alpha, active = situation
    order = list(range(len(rho)))
    random.shuffle(order)
    straight = np.exp(ddk_update(log_r, rho, alpha, active))[order]
    np.testing.assert_allclose(np.exp(ddk_update(log_r[order], rho[order], alpha, active[order])), straight, rtol=1e-9)


@given(st.lists(ratios_of, min_size=2, max_size=6))
def test_from_equal_weights_the_larger_lag_gets_more(rho: list[float]) -> None:
    ratios = np.array(rho)
    log_r = np.log(np.full(len(rho), 1 / len(rho)))
    weights = ddk_update(log_r, ratios, 0.5, np.ones(len(rho), dtype=np.bool_))
    assert (np.diff(weights[np.argsort(ratios)]) >= -1e-12).all()


@pytest.mark.parametrize("smoothed", [True, False])
@pytest.mark.parametrize("updates", [0, 1, 2])
def test_a_saved_policy_goes_on_bit_for_bit(smoothed: bool, updates: int) -> None:
    tokens = np.array([500, 0, 200])
    whole, resumed = (DDKPolicy(DOMAINS, tokens, smoothed=smoothed) for _ in range(2))
    after(whole, updates)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict(), allow_nan=False)))
    for student in STUDENT[updates:]:
        for policy in (whole, resumed):
            policy.update(student, TEACHER, COUNTS)
        np.testing.assert_array_equal(resumed.weights(), whole.weights())
        np.testing.assert_array_equal(resumed.ratios, whole.ratios)


def test_a_saved_static_policy_keeps_its_ratios() -> None:
    whole, resumed = (StaticPolicy("equal", DOMAINS, np.full(3, 1 / 3)) for _ in range(2))
    after(whole, 1)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    np.testing.assert_array_equal(resumed.ratios, whole.ratios)


def test_foreign_state_is_refused() -> None:
    state = DDKPolicy(DOMAINS, TOKENS).state_dict()
    with pytest.raises(TrainingError, match="made by 'ddk' and the recipe asks for 'ddk_unsmoothed'"):
        DDKPolicy(DOMAINS, TOKENS, smoothed=False).load_state_dict(state)
    with pytest.raises(TrainingError, match="made by 'ddk' and the recipe asks for 'equal'"):
        StaticPolicy("equal", DOMAINS, np.full(3, 1 / 3)).load_state_dict(state)
    with pytest.raises(TrainingError, match="the checkpoint has the domains web, code, wiki and the data has a, b, c"):
        DDKPolicy(("a", "b", "c"), TOKENS).load_state_dict(state)
