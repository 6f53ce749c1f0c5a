"""Random projections, and the comparison of the fused objective with the dense reference."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.objective import Reference
from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.objective import ObjectiveOutput, ObjectiveTerms
from stillhouse.recipe import (
    KDObjective,
    SFTObjective,
)
from stillhouse.teachers.protocol import Projection

SFT = SFTObjective(type="sft")
KD = KDObjective(type="kd")
VOCAB, STUDENT_WIDTH, TEACHER_WIDTH = 37, 5, 7


def make_projection(
    seed: int,
    num_tokens: int,
    width: int,
    *,
    rows: int = VOCAB,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Projection:
    """Random hidden states and head whose logits have a spread of about 2."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    drawn_bias = draw(rows).requires_grad_() if bias else None
    hidden, weight = draw(num_tokens, width) * 2 / width**0.5, draw(rows, width)
    return Projection(hidden.requires_grad_(), weight.requires_grad_(), drawn_bias, scale, softcap)


def make_labels(seed: int, num_tokens: int) -> Tensor:
    return torch.randint(VOCAB, (num_tokens,), generator=torch.Generator().manual_seed(seed))


def run(
    student: Projection,
    labels: Tensor,
    teacher: Projection | None,
    objective: KDObjective | SFTObjective,
    *,
    normaliser: float | Tensor | None = None,
    chunk: int = 16,
    compiled: bool = False,
    accumulator: Tensor | None = None,
) -> ObjectiveOutput:
    return fused_objective(
        student,
        labels,
        teacher,
        ObjectiveTerms.from_config(objective, VOCAB),
        normaliser=len(labels) if normaliser is None else normaliser,
        chunk=chunk,
        compiled=compiled,
        weight_grad_accumulator=accumulator,
    )


def assert_matches(
    output: ObjectiveOutput, student: Projection, expected: Reference, *, rtol: float = 1e-9, atol: float = 1e-11
) -> None:
    """Run backward and compare everything with the reference."""

    def close(actual: Tensor | None, wanted: Tensor | None) -> None:
        if actual is None or wanted is None:
            assert actual is None
            assert wanted is None
            return
        torch.testing.assert_close(actual.double(), wanted.double(), rtol=rtol, atol=atol)

    output.loss.backward()
    close(output.loss.detach(), expected.loss)
    close(output.ce, expected.ce)
    close(output.kd, expected.kd)
    close(student.hidden.grad, expected.d_hidden)
    close(student.weight.grad, expected.d_weight)
    close(None if student.bias is None else student.bias.grad, expected.d_bias)
    close(output.ce_grad_square, expected.ce_grad_square)
    close(output.kd_grad_square, expected.kd_grad_square)
