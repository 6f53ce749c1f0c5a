"""The fused objective against the dense float64 reference, and what it promises about graphs and memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.divergences import ALL_CONFIGS, config_id
from reference.fused_cases import (
    KD,
    SFT,
    STUDENT_WIDTH,
    TEACHER_WIDTH,
    VOCAB,
    assert_matches,
    make_labels,
    make_projection,
    run,
)
from reference.objective import dense_objective
from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.objective import ObjectiveTerms
from stillhouse.errors import ModelError
from stillhouse.recipe import (
    AdditiveMixing,
    Config,
    ConvexMixing,
    KDObjective,
    SFTObjective,
)
from stillhouse.teachers.protocol import Projection

# --- against the dense reference ------------------------------------------------------------


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=config_id)
def test_chunked_equals_dense(config: Config) -> None:
    """40 tokens in chunks of 16 (two whole ones and a tail of 8), T = 2, convex mixing."""
    student, teacher = make_projection(1, 40, STUDENT_WIDTH), make_projection(2, 40, TEACHER_WIDTH)
    labels = make_labels(3, 40)
    objective = KDObjective(type="kd", divergence=config, temperature=2.0, mixing=ConvexMixing(kd_weight=0.3))
    output = run(student, labels, teacher, objective)
    assert_matches(output, student, dense_objective(student, labels, teacher, objective, VOCAB, 40))


@pytest.mark.parametrize("chunk", [1, 5, 16, 17, 40, 1000])
def test_any_chunk_gives_the_same(chunk: int) -> None:
    student, teacher = make_projection(1, 40, STUDENT_WIDTH), make_projection(2, 40, TEACHER_WIDTH)
    labels = make_labels(3, 40)
    output = run(student, labels, teacher, KD, chunk=chunk)
    assert_matches(output, student, dense_objective(student, labels, teacher, KD, VOCAB, 40))


@pytest.mark.parametrize(
    "objective",
    [
        SFT,
        KD,
        KDObjective(type="kd", mixing=AdditiveMixing(type="additive", gamma=0.2), scale_t2=False, temperature=0.5),
        KDObjective(type="kd", mixing=ConvexMixing(kd_weight=1.0), temperature=2.0),
        KDObjective(type="kd", mixing=ConvexMixing(kd_weight=0.0)),
        KDObjective(type="kd", temperature=4.0),
    ],
)
@pytest.mark.parametrize(
    "student_head",
    [
        {},
        {"bias": True},
        {"scale": 0.25},
        {"softcap": 3.0},
        {"rows": VOCAB + 6},
        {"bias": True, "scale": 0.7, "softcap": 5.0, "rows": VOCAB + 6},
    ],
)
def test_heads_of_every_shape(
    objective: KDObjective | SFTObjective, student_head: dict[str, float | bool | int]
) -> None:
    """Bias, scale, soft-cap and padding rows, each alone and together; the teacher has all of them."""
    student = make_projection(1, 21, STUDENT_WIDTH, **student_head)  # type: ignore[arg-type]
    teacher = make_projection(2, 21, TEACHER_WIDTH, bias=True, scale=1.3, softcap=4.0, rows=VOCAB + 3)
    labels = make_labels(3, 21)
    if isinstance(objective, SFTObjective):
        output = run(student, labels, None, objective)
        expected = dense_objective(student, labels, None, objective, VOCAB, 21)
    else:
        output = run(student, labels, teacher, objective)
        expected = dense_objective(student, labels, teacher, objective, VOCAB, 21)
    assert_matches(output, student, expected)
    assert student.weight.grad is not None
    assert (student.weight.grad[VOCAB:] == 0).all()
    for untouched in (teacher.hidden, teacher.weight, teacher.bias):
        assert untouched is not None
        assert untouched.grad is None


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_tokens=st.integers(0, 30),
    chunk=st.integers(1, 40),
    config=st.sampled_from(ALL_CONFIGS),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    softcap=st.sampled_from([None, 6.0]),
)
def test_any_case_equals_dense(
    seed: int, num_tokens: int, chunk: int, config: Config, temperature: float, softcap: float | None
) -> None:
    student = make_projection(seed, num_tokens, STUDENT_WIDTH, softcap=softcap, bias=seed % 2 == 0)
    teacher = make_projection(seed + 1, num_tokens, TEACHER_WIDTH)
    labels = make_labels(seed, num_tokens)
    objective = KDObjective(type="kd", divergence=config, temperature=temperature)
    if num_tokens == 0:
        assert run(student, labels, teacher, objective, normaliser=7, chunk=chunk).loss.item() == 0
        return
    output = run(student, labels, teacher, objective, normaliser=7.5, chunk=chunk)
    expected = dense_objective(student, labels, teacher, objective, VOCAB, 7.5)
    assert_matches(output, student, expected, rtol=1e-7, atol=1e-9)


# --- worked numbers -------------------------------------------------------------------------


def identity_head(*logits: list[float]) -> Projection:
    """A projection whose logits are the numbers given."""
    hidden = torch.tensor(logits, dtype=torch.float64)
    return Projection(hidden.requires_grad_(), torch.eye(hidden.shape[1], dtype=torch.float64))


def test_cross_entropy_by_hand() -> None:
    # log(2e + 2) - 1 = 1.006409, and the gradient q - onehot.
    student, labels = identity_head([1.0, 1, 0, 0]), torch.tensor([0])
    output = fused_objective(
        student, labels, None, ObjectiveTerms.from_config(SFT, 4), normaliser=1, chunk=4, compiled=False
    )
    output.loss.backward()
    assert output.loss.item() == pytest.approx(1.006409, abs=1e-5)
    assert student.hidden.grad is not None
    assert student.hidden.grad[0].tolist() == pytest.approx([-0.634471, 0.365529, 0.134471, 0.134471], abs=1e-5)


@pytest.mark.parametrize(
    ("mixing", "temperature", "expected"),
    [
        (AdditiveMixing(type="additive", gamma=0.2), 1.0, 1.042024),  # 1.006409 + .2 * .178075
        (ConvexMixing(kd_weight=0.5), 1.0, 0.592242),  # (1.006409 + .178075) / 2
        (ConvexMixing(kd_weight=1.0), 2.0, 0.226578),  # 4 * .056644
    ],
)
def test_mixing_by_hand(mixing: AdditiveMixing | ConvexMixing, temperature: float, expected: float) -> None:
    objective = KDObjective(type="kd", mixing=mixing, temperature=temperature)
    output = fused_objective(
        identity_head([1.0, 1, 0, 0]),
        torch.tensor([0]),
        identity_head([2.0, 1, 0, -1]),
        ObjectiveTerms.from_config(objective, 4),
        normaliser=1,
        chunk=4,
        compiled=False,
    )
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)
    assert output.teacher_nll is not None
    assert output.teacher_entropy is not None
    assert output.top1_agreement is not None
    assert output.teacher_nll.item() == pytest.approx(0.440190, abs=1e-5)  # -log .643914
    assert output.teacher_entropy.item() == pytest.approx(0.947537, abs=1e-5)
    assert output.top1_agreement.tolist() == [True]  # the student's tie of ids 0 and 1 contains the teacher's 0


def test_top1_agreement_by_hand() -> None:
    student = identity_head([3.0, 1, 0], [0.0, 1, 0], [0.0, 1, 1])
    teacher = identity_head([2.0, 1, 0], [2.0, 1, 0], [0.0, 0, 5])
    terms = ObjectiveTerms.from_config(KD, 3)
    output = fused_objective(
        student, torch.zeros(3, dtype=torch.long), teacher, terms, normaliser=3, chunk=2, compiled=False
    )
    assert output.top1_agreement is not None
    assert output.top1_agreement.tolist() == [True, False, True]


# --- normalisation, masks, graphs -----------------------------------------------------------


def test_micro_batches_under_one_normaliser_equal_one_batch() -> None:
    """40 tokens at once, or 3 + 0 + 37 with the same global count: same loss, same gradient."""
    student, teacher = make_projection(1, 40, STUDENT_WIDTH), make_projection(2, 40, TEACHER_WIDTH)
    labels = make_labels(3, 40)
    whole = run(student, labels, teacher, KD)
    whole.loss.backward()
    assert student.weight.grad is not None
    wanted, student.weight.grad = student.weight.grad, None
    total = torch.zeros((), dtype=torch.float64)
    for start, stop in ((0, 3), (3, 3), (3, 40)):
        part = replace(student, hidden=student.hidden[start:stop])
        part_teacher = replace(teacher, hidden=teacher.hidden[start:stop])
        output = run(part, labels[start:stop], part_teacher, KD, normaliser=torch.tensor(40))
        output.loss.backward()
        total += output.loss.detach()
    torch.testing.assert_close(total, whole.loss.detach())
    torch.testing.assert_close(student.weight.grad, wanted)


def test_no_targets_give_zero_with_a_graph() -> None:
    student, teacher = make_projection(1, 0, STUDENT_WIDTH, bias=True), make_projection(2, 0, TEACHER_WIDTH)
    output = run(student, make_labels(3, 0), teacher, KD, normaliser=12)
    assert output.loss.item() == 0
    output.loss.backward()
    for leaf, shape in ((student.hidden, (0, STUDENT_WIDTH)), (student.weight, (VOCAB, STUDENT_WIDTH))):
        assert leaf.grad is not None
        assert leaf.grad.shape == shape
        assert (leaf.grad == 0).all()
    assert output.kd is not None
    assert output.kd.shape == output.ce.shape == (0,)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: type[torch.no_grad] | type[torch.inference_mode]) -> None:
    student, teacher = make_projection(1, 20, STUDENT_WIDTH), make_projection(2, 20, TEACHER_WIDTH)
    labels = make_labels(3, 20)
    expected = run(student, labels, teacher, KD)
    with mode():
        output = run(student, labels, teacher, KD)
    assert not output.loss.requires_grad
    torch.testing.assert_close(output.loss, expected.loss.detach())
    assert output.ce_grad_square.item() == output.kd_grad_square.item() == 0
    for name in ("ce", "kd", "teacher_nll", "teacher_entropy"):
        assert not getattr(expected, name).requires_grad
        torch.testing.assert_close(getattr(output, name), getattr(expected, name))


def test_a_weightless_divergence_is_still_reported() -> None:
    student, teacher = make_projection(1, 20, STUDENT_WIDTH), make_projection(2, 20, TEACHER_WIDTH)
    labels = make_labels(3, 20)
    objective = KDObjective(type="kd", mixing=ConvexMixing(kd_weight=0.0))
    output = run(student, labels, teacher, objective)
    plain = run(student, labels, None, SFT)
    assert output.kd is not None
    assert (output.kd > 0).all()
    torch.testing.assert_close(output.loss, plain.loss)
    assert plain.kd is plain.teacher_nll is plain.teacher_entropy is plain.top1_agreement is None


def test_a_frozen_head_gets_no_gradient() -> None:
    student, teacher = make_projection(1, 20, STUDENT_WIDTH), make_projection(2, 20, TEACHER_WIDTH)
    labels = make_labels(3, 20)
    expected = dense_objective(student, labels, teacher, KD, VOCAB, 20)
    student.weight.requires_grad_(False)
    run(student, labels, teacher, KD).loss.backward()
    assert student.weight.grad is None
    assert student.hidden.grad is not None
    torch.testing.assert_close(student.hidden.grad, expected.d_hidden)


def test_gradients_scale_with_what_follows_the_loss() -> None:
    student, teacher = make_projection(1, 20, STUDENT_WIDTH), make_projection(2, 20, TEACHER_WIDTH)
    labels = make_labels(3, 20)
    expected = dense_objective(student, labels, teacher, KD, VOCAB, 20)
    (3 * run(student, labels, teacher, KD).loss).backward()
    torch.testing.assert_close(student.hidden.grad, 3 * expected.d_hidden)
    torch.testing.assert_close(student.weight.grad, 3 * expected.d_weight)


def test_autocast_outside_changes_nothing() -> None:
    student = make_projection(1, 20, STUDENT_WIDTH, dtype=torch.float32)
    teacher = make_projection(2, 20, TEACHER_WIDTH, dtype=torch.float32)
    labels = make_labels(3, 20)
    expected = run(student, labels, teacher, KD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = run(student, labels, teacher, KD)
    assert torch.equal(output.loss, expected.loss)


# --- the weight-gradient accumulator ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accumulator_equals_the_returned_gradient(dtype: torch.dtype) -> None:
    student = make_projection(1, 40, STUDENT_WIDTH, rows=VOCAB + 4, dtype=dtype)
    teacher = make_projection(2, 40, TEACHER_WIDTH, dtype=dtype)
    labels = make_labels(3, 40)
    run(student, labels, teacher, KD).loss.backward()
    assert student.weight.grad is not None
    wanted, student.weight.grad = student.weight.grad, None
    accumulator = torch.ones_like(student.weight, requires_grad=False)
    run(student, labels, teacher, KD, accumulator=accumulator).loss.backward()
    assert student.weight.grad is None
    torch.testing.assert_close(accumulator, wanted + 1)


def test_accumulator_keeps_what_bfloat16_gradients_lose() -> None:
    """200 micro-batches: the float32 accumulator is nearer to the truth than summed bfloat16 gradients."""
    student = make_projection(1, 200, STUDENT_WIDTH, dtype=torch.bfloat16)
    labels = make_labels(3, 200)
    truth = dense_objective(student, labels, None, SFT, VOCAB, 200).d_weight
    accumulator = torch.zeros(VOCAB, STUDENT_WIDTH)
    for token in range(200):
        part = replace(student, hidden=student.hidden[token : token + 1])
        run(part, labels[token : token + 1], None, SFT, normaliser=200.0).loss.backward()
        run(part, labels[token : token + 1], None, SFT, normaliser=200.0, accumulator=accumulator).loss.backward()
    assert student.weight.grad is not None
    error = (accumulator.double() - truth).norm() / truth.norm()
    rounded_error = (student.weight.grad.double() - truth).norm() / truth.norm()
    assert error < 0.01
    assert error < 0.5 * rounded_error


def test_accumulator_refuses_a_scaled_loss() -> None:
    student, labels = make_projection(1, 4, STUDENT_WIDTH), make_labels(3, 4)
    accumulator = torch.zeros_like(student.weight, requires_grad=False)
    output = run(student, labels, None, SFT, accumulator=accumulator)
    with pytest.raises(AssertionError, match="accumulator cannot be scaled"):
        (2 * output.loss).backward()


# --- numbers at the edges ---------------------------------------------------------------------


def test_extreme_logits_stay_finite() -> None:
    """Logits of +-1e4 in float32: q underflows to 0 and the gradient is still q - p."""
    student = identity_head([1e4, -1e4, 0.0], [-1e4, 1e4, 0.0])
    teacher = identity_head([-1e4, 1e4, 0.0], [1e4, -1e4, 0.0])
    student = replace(student, hidden=student.hidden.detach().float().requires_grad_(), weight=student.weight.float())
    teacher = replace(teacher, hidden=teacher.hidden.detach().float(), weight=teacher.weight.float())
    objective = KDObjective(type="kd", mixing=ConvexMixing(kd_weight=1.0))
    terms = ObjectiveTerms.from_config(objective, 3)
    output = fused_objective(student, torch.tensor([0, 1]), teacher, terms, normaliser=1, chunk=2, compiled=False)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(4e4)
    assert student.hidden.grad is not None
    assert student.hidden.grad.tolist() == [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]


def test_teacher_mass_on_a_masked_id_makes_the_loss_infinite() -> None:
    student, teacher = make_projection(1, 4, STUDENT_WIDTH), make_projection(2, 4, TEACHER_WIDTH)
    mask = torch.zeros(VOCAB, dtype=torch.float64)
    mask[5] = -torch.inf
    output = run(replace(student, bias=mask), torch.zeros(4, dtype=torch.long), teacher, KD)
    assert output.loss.item() == torch.inf
    both = run(replace(student, bias=mask), torch.zeros(4, dtype=torch.long), replace(teacher, bias=mask), KD)
    assert both.loss.isfinite()


def test_bfloat16_error_bounds() -> None:
    """Against the float64 truth of the same rounded inputs: per-token values within 2^-6, gradients within 2 %."""
    student = make_projection(1, 64, 48, dtype=torch.bfloat16)
    teacher = make_projection(2, 64, 48, dtype=torch.bfloat16)
    labels = make_labels(3, 64)
    expected = dense_objective(student, labels, teacher, KD, VOCAB, 64)
    output = run(student, labels, teacher, KD, chunk=32)
    output.loss.backward()
    assert output.ce.dtype == torch.float32
    assert expected.kd is not None
    assert output.kd is not None
    # Logits up to about 8 are rounded by at most 8 * 2^-9 = 2^-6.
    assert (output.ce.double() - expected.ce).abs().max() < 2**-5
    assert (output.kd.double() - expected.kd).abs().max() < 2**-5
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=2e-3)
    for leaf, wanted in ((student.hidden, expected.d_hidden), (student.weight, expected.d_weight)):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.bfloat16
        assert (leaf.grad.double() - wanted).norm() < 0.01 * wanted.norm()


def test_float32_error_bounds() -> None:
    student = make_projection(1, 64, 48, dtype=torch.float32)
    teacher = make_projection(2, 64, 48, dtype=torch.float32)
    labels = make_labels(3, 64)
    expected = dense_objective(student, labels, teacher, KD, VOCAB, 64)
    assert_matches(run(student, labels, teacher, KD, chunk=32), student, expected, rtol=1e-4, atol=1e-6)


def test_a_head_below_the_shared_vocabulary_is_refused() -> None:
    student = make_projection(1, 4, STUDENT_WIDTH)
    short = make_projection(2, 4, TEACHER_WIDTH, rows=VOCAB - 1)
    with pytest.raises(ModelError, match=r"teacher's head has 36 rows, fewer than the 37 ids"):
        run(student, make_labels(3, 4), short, KD)
    with pytest.raises(ModelError, match=r"student's head has 36 rows"):
        run(short, make_labels(3, 4), student, KD)
