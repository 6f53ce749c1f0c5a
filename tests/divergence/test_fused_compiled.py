"""The compiled path of the fused objective equals the eager one, and says when there is no compiler."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from reference.divergences import ALL_CONFIGS, config_id
from reference.fused_cases import (
    SFT,
    STUDENT_WIDTH,
    TEACHER_WIDTH,
    VOCAB,
    make_labels,
    make_projection,
    run,
)
from reference.objective import dense_objective, double
from stillhouse.divergence import rows
from stillhouse.divergence.rows import compiler_available
from stillhouse.recipe import (
    JSD,
    AdaptiveKL,
    Config,
    ForwardKL,
    KDObjective,
    ReverseKL,
)

needs_compiler = pytest.mark.skipif(not compiler_available(), reason="no C++ compiler or no Python headers")


def assert_compiled_equals_eager(objective: KDObjective, dtype: torch.dtype, rtol: float, atol: float) -> None:
    student = make_projection(1, 40, STUDENT_WIDTH, dtype=dtype, bias=True, softcap=8.0)
    teacher = make_projection(2, 40, TEACHER_WIDTH, dtype=dtype)
    labels = make_labels(3, 40)
    eager_student = replace(
        student, **{k: getattr(student, k).detach().clone().requires_grad_() for k in ("hidden", "weight", "bias")}
    )
    eager = run(eager_student, labels, teacher, objective)
    output = run(student, labels, teacher, objective, compiled=True)
    eager.loss.backward()
    output.loss.backward()
    for name in ("loss", "ce", "kd", "teacher_nll", "teacher_entropy", "ce_grad_square", "kd_grad_square"):
        torch.testing.assert_close(getattr(output, name), getattr(eager, name), rtol=rtol, atol=atol)
    assert output.top1_agreement is not None
    assert eager.top1_agreement is not None
    assert torch.equal(output.top1_agreement, eager.top1_agreement)
    for name in ("hidden", "weight", "bias"):
        actual, wanted = getattr(student, name).grad, getattr(eager_student, name).grad
        torch.testing.assert_close(actual, wanted, rtol=rtol, atol=atol)
    with torch.inference_mode():
        evaluated = run(student, labels, teacher, objective, compiled=True)
    assert torch.equal(evaluated.ce, output.ce)


@needs_compiler
def test_compiled_equals_eager() -> None:
    objective = KDObjective(type="kd", divergence=JSD(type="jsd", beta=0.5), temperature=2.0)
    assert_compiled_equals_eager(objective, torch.float32, 1e-5, 1e-6)


@needs_compiler
@pytest.mark.slow
def test_compiled_adaptive_kl_equals_eager() -> None:
    """Its head mask is an opaque operator inside the compiled function."""
    objective = KDObjective(type="kd", divergence=AdaptiveKL(type="adaptive_kl"))
    assert_compiled_equals_eager(objective, torch.float32, 1e-5, 1e-6)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("config", ALL_CONFIGS, ids=config_id)
def test_every_divergence_compiles(config: Config) -> None:
    objective = KDObjective(type="kd", divergence=config, temperature=2.0)
    assert_compiled_equals_eager(objective, torch.float32, 1e-4, 1e-5)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("config", [ForwardKL(), ReverseKL(type="reverse_kl")], ids=config_id)
def test_bfloat16_compiles(config: Config) -> None:
    assert_compiled_equals_eager(KDObjective(type="kd", divergence=config), torch.bfloat16, 1e-2, 1e-4)


def test_no_compiler_warns_once_and_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "compiler_available", lambda device: False)
    rows.compiler_or_warning.cache_clear()
    student, labels = make_projection(1, 4, STUDENT_WIDTH), make_labels(3, 4)
    try:
        with pytest.warns(RuntimeWarning, match="no compiler for cpu.*compile_head: false"):
            first = run(student, labels, None, SFT, compiled=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = run(student, labels, None, SFT, compiled=True)
    finally:
        rows.compiler_or_warning.cache_clear()
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.loss, run(student, labels, None, SFT).loss)


def test_compiler_available_looks_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiler_available()


def test_the_reference_reads_float64_copies() -> None:
    """Guards the guard: the dense reference must not write gradients into the tensors under test."""
    student = make_projection(1, 4, STUDENT_WIDTH, dtype=torch.bfloat16)
    copy = double(student)
    assert copy.hidden.dtype == torch.float64
    dense_objective(student, make_labels(3, 4), None, SFT, VOCAB, 4)
    assert student.hidden.grad is None
