"""Values and gradients of every divergence: worked numbers, identities, and the float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference.divergences import ALL_CONFIGS, config_id, value_and_gradient
from stillhouse.divergence.adaptive import head_mask
from stillhouse.divergence.base import logit_gradient
from stillhouse.divergence.table import DIVERGENCES, build_divergence
from stillhouse.errors import RecipeError
from stillhouse.recipe import (
    JSD,
    AdaptiveKL,
    AlphaBeta,
    Config,
    ForwardKL,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    TotalVariation,
)

TEACHER = torch.tensor([[2.0, 1, 0, -1]], dtype=torch.float64)
STUDENT = torch.tensor([[1.0, 1, 0, 0]], dtype=torch.float64)
# softmax: p = [.643914, .236883, .087144, .032059], q = [.365529, .365529, .134471, .134471]

each_divergence = pytest.mark.parametrize("config", ALL_CONFIGS, ids=config_id)


def evaluate(config: Config, teacher: Tensor, student: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The library's value [N] and gradient at the student's logits [N, V], in the dtype given."""
    log_p = torch.log_softmax(teacher / temperature, -1)
    log_q = torch.log_softmax(student / temperature, -1)
    value, a = build_divergence(config).row_terms(log_p, log_q)
    return value, logit_gradient(a, log_q.exp()) / temperature


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ForwardKL(), 0.178075),
        (ReverseKL(type="reverse_kl"), 0.202722),
        (JSD(type="jsd", beta=0.1), 0.016060),
        (JSD(type="jsd", beta=0.5), 0.045840),
        (JSD(type="jsd", beta=0.9), 0.017707),
        (JSD(type="jsd", beta=0), 0.178075),  # exact forward KL by convention
        (JSD(type="jsd", beta=1), 0.202722),  # exact reverse KL by convention
        (JSD(type="jsd", beta=1e-4), 1.78e-5),  # and the formula itself tends to 0
        (SkewedKL(type="skewed_kl", alpha=0.1), 0.144961),
        (SkewedReverseKL(type="skewed_reverse_kl", alpha=0.1), 0.155157),
        (TotalVariation(type="tvd"), 0.278385),  # (.278385 + .128646 + .047326 + .102412) / 2
        (AdaptiveKL(type="adaptive_kl", mu=0.5), 0.190399),  # G_h = G_t, so (.178075 + .202722) / 2
        (AlphaBeta(type="alpha_beta", alpha=0.2, beta=0.7), 0.229595),
        (AlphaBeta(type="alpha_beta", alpha=1, beta=0), 0.178075),  # forward KL
        (AlphaBeta(type="alpha_beta", alpha=0, beta=1), 0.202722),  # reverse KL
        (AlphaBeta(type="alpha_beta", alpha=0.5, beta=0), 0.433670),
        (AlphaBeta(type="alpha_beta", alpha=0, beta=0.5), 0.492796),
        (AlphaBeta(type="alpha_beta", alpha=0.5, beta=-0.5), 1.172467),
        (AlphaBeta(type="alpha_beta", alpha=0, beta=0), 1.376332),
    ],
)
def test_worked_values(config: Config, expected: float) -> None:
    value, _ = evaluate(config, TEACHER, STUDENT)
    assert value.item() == pytest.approx(expected, abs=1e-5 if expected > 1e-4 else 1e-7)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ForwardKL(), [-0.278385, 0.128646, 0.047326, 0.102412]),  # q - p
        (ReverseKL(type="reverse_kl"), [-0.281071, 0.084459, 0.031071, 0.165541]),
        (JSD(type="jsd", beta=0.5), [-0.066883, 0.027463, 0.010103, 0.029317]),
        (SkewedKL(type="skewed_kl", alpha=0.1), [-0.219767, 0.097771, 0.035968, 0.086028]),
        (SkewedReverseKL(type="skewed_reverse_kl", alpha=0.1), [-0.218914, 0.079318, 0.029179, 0.110417]),
        (AlphaBeta(type="alpha_beta", alpha=0.2, beta=0.7), [-0.315000, 0.095304, 0.041559, 0.178137]),
        (TotalVariation(type="tvd"), [-0.231918, 0.133612, 0.049153, 0.049153]),
    ],
)
def test_worked_gradients(config: Config, expected: list[float]) -> None:
    _, gradient = evaluate(config, TEACHER, STUDENT)
    torch.testing.assert_close(gradient[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


def test_temperature_two() -> None:
    value, gradient = evaluate(ForwardKL(), TEACHER, STUDENT, temperature=2.0)
    assert value.item() == pytest.approx(0.056644, abs=1e-5)
    expected = torch.tensor([-0.071912, 0.017613, 0.010683, 0.043617], dtype=torch.float64)
    torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-5)


def test_adaptive_kl_counts_the_id_that_crosses_mu() -> None:
    # .4 < .5 <= .4 + .3, so H = {0, 1}; H = {0} would give .103972.
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    q = torch.tensor([[0.2, 0.4, 0.3, 0.1]], dtype=torch.float64)
    value, _ = evaluate(AdaptiveKL(type="adaptive_kl", mu=0.5), p.log(), q.log())
    assert value.item() == pytest.approx(0.106917, abs=1e-5)


def test_head_mask_goes_on_where_the_first_guess_is_too_small() -> None:
    # 300 equal ids: .5 needs 150 of them, more than the first guess of 64. The other row needs 1 id.
    p = torch.full((2, 300), 1 / 300, dtype=torch.float64)
    p[1] = 0.4 / 299
    p[1, 7] = 0.6
    mask = head_mask(p, 0.5)
    assert mask.sum(-1).tolist() == [150, 1]
    assert mask[1, 7]


@each_divergence
def test_matches_the_reference(config: Config) -> None:
    generator = torch.Generator().manual_seed(1)
    teacher = 3 * torch.randn(16, 23, generator=generator, dtype=torch.float64)
    student = 3 * torch.randn(16, 23, generator=generator, dtype=torch.float64)
    for temperature in (1.0, 2.0, 0.5):
        expected_value, expected_gradient = value_and_gradient(config, teacher, student, temperature)
        value, gradient = evaluate(config, teacher, student, temperature)
        torch.testing.assert_close(value, expected_value, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-11)


@each_divergence
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 40), spread=st.sampled_from([0.01, 1.0, 8.0]))
def test_identities(config: Config, seed: int, size: int, spread: float) -> None:
    """D(p, p) = 0 with no gradient, D >= 0, and the gradient of a shift-invariant function sums to 0."""
    generator = torch.Generator().manual_seed(seed)
    teacher = spread * torch.randn(3, size, generator=generator, dtype=torch.float64)
    student = spread * torch.randn(3, size, generator=generator, dtype=torch.float64)
    same_value, same_gradient = evaluate(config, teacher, teacher)
    assert same_value.abs().max() < 1e-9
    assert same_gradient.abs().max() < 1e-9
    value, gradient = evaluate(config, teacher, student)
    assert (value >= -1e-12).all()
    scale = gradient.abs().max().clamp(min=1.0)
    assert gradient.sum(-1).abs().max() < 1e-9 * scale


@each_divergence
def test_ids_masked_in_both_are_as_if_absent(config: Config) -> None:
    masked_teacher = torch.cat([TEACHER, torch.full((1, 2), -math.inf, dtype=torch.float64)], -1)
    masked_student = torch.cat([STUDENT, torch.full((1, 2), -math.inf, dtype=torch.float64)], -1)
    value, gradient = evaluate(config, masked_teacher, masked_student)
    expected_value, expected_gradient = evaluate(config, TEACHER, STUDENT)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradient[:, :4], expected_gradient)
    assert (gradient[:, 4:] == 0).all()


@each_divergence
def test_one_sided_masks_are_finite_or_visible(config: Config) -> None:
    """Finite exactly where the divergence says so; never a silent number where it is infinite."""
    divergence = build_divergence(config)
    masked = torch.tensor([0.0, 0.0, 0.0, -math.inf], dtype=torch.float64)
    of_student, gradient = evaluate(config, TEACHER, STUDENT + masked)
    assert of_student.isfinite().item() == (not divergence.student_must_cover)
    if not divergence.student_must_cover:
        assert gradient.isfinite().all()
        assert gradient[0, 3] == 0
    of_teacher, gradient = evaluate(config, TEACHER + masked, STUDENT)
    assert of_teacher.isfinite().item() == (not divergence.teacher_must_cover)
    if not divergence.teacher_must_cover:
        assert gradient.isfinite().all()


@each_divergence
def test_extreme_logits_in_float32(config: Config) -> None:
    """Logits near 1e4 on both sides: probabilities underflow, values and gradients stay in their range."""
    if isinstance(config, AlphaBeta) and min(config.alpha, config.beta) <= 0:
        pytest.skip("these members of the family are unbounded powers of the ratio, and overflow")
    teacher = torch.tensor([[1e4, 0.0, -1e4], [5.0, 4.0, 3.0]])
    student = torch.tensor([[-1e4, 0.0, 1e4], [5.0, 4.0, 3.5]])
    value, gradient = evaluate(config, teacher, student)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    same, same_gradient = evaluate(config, teacher, teacher)
    assert same.abs().max() < 1e-6
    assert same_gradient.abs().max() < 1e-6


@pytest.mark.parametrize(("alpha", "beta"), [(1e-5, 0.5), (0.5, 1e-5), (0.5, -0.50001)])
def test_alpha_beta_refuses_what_float32_cannot_compute(alpha: float, beta: float) -> None:
    with pytest.raises(RecipeError, match=r"alpha_beta: .*too close to 0"):
        build_divergence(AlphaBeta(type="alpha_beta", alpha=alpha, beta=beta))


def test_alpha_beta_takes_rounding_for_zero() -> None:
    rounded = AlphaBeta(type="alpha_beta", alpha=0.1 + 0.2, beta=-0.3)
    exact = AlphaBeta(type="alpha_beta", alpha=0.3, beta=-0.3)
    torch.testing.assert_close(evaluate(rounded, TEACHER, STUDENT), evaluate(exact, TEACHER, STUDENT))


def test_every_recipe_class_has_a_divergence_and_equal_parameters_make_equal_ones() -> None:
    assert {type(config) for config in ALL_CONFIGS} == set(DIVERGENCES)
    assert build_divergence(JSD(type="jsd", beta=0.3)) == build_divergence(JSD(type="jsd", beta=0.3))
    assert build_divergence(JSD(type="jsd", beta=0.3)) != build_divergence(JSD(type="jsd", beta=0.4))
