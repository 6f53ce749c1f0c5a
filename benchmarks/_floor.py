"""What no implementation can undercut: bare backbones, and the head's matrix products.

A KD step has to run the teacher's backbone, the student's backbone forwards and backwards, and per
chunk of target tokens four products with the vocabulary: both models' logits, and the gradients of
hidden states and head weight. Nothing pointwise, no optimizer and no clipping is done here.
"""

from __future__ import annotations

from typing import Any

import torch
from _measure import STUDENT_FOLDER, TEACHER_FOLDER, Job, StepClock, num_tokens, read_batches
from _models import as_batch, folder_model
from torch import Tensor

from stillhouse.divergence.accumulate import add_converted
from stillhouse.models.head import split_model
from stillhouse.teachers.protocol import Projection


def head_products(student: Projection, teacher: Projection, weight_gradient: Tensor, chunk: int) -> Tensor:
    """Run the four products per chunk and return a gradient of the student's hidden states [N, H].

    The student's logits [chunk, V] stand in for their own gradient. ``weight_gradient`` float32
    [V, H] is added to: in place by the product in float32, otherwise through one buffer and the
    fastest conversion that we know.
    """
    hidden_gradient = torch.empty_like(student.hidden)
    product = torch.empty_like(student.weight)
    for start in range(0, len(student.hidden), chunk):
        part = slice(start, start + chunk)
        torch.mm(teacher.hidden[part], teacher.weight.T)
        gradient = torch.mm(student.hidden[part], student.weight.T)
        torch.mm(gradient, student.weight, out=hidden_gradient[part])
        if student.weight.dtype == torch.float32:
            weight_gradient.addmm_(gradient.T, student.hidden[part])
        else:
            torch.mm(gradient.T, student.hidden[part], out=product)
            add_converted(weight_gradient, product)
    return hidden_gradient


def measure_floor(job: Job) -> dict[str, Any]:
    """Tokens per second of backbones and products over the stored batches."""
    dtype = getattr(torch, job.dtype)
    student, teacher = (folder_model(job.work / folder, dtype) for folder in (STUDENT_FOLDER, TEACHER_FOLDER))
    student.train()
    student_parts, teacher_parts = split_model(student), split_model(teacher)
    weight_gradient = torch.zeros(student_parts.head.weight.shape)
    batches = read_batches(job.work)
    clock = StepClock(job.warmup)
    clock.start()
    for rows in batches:
        batch = as_batch(rows)
        with torch.no_grad():
            teacher_hidden = teacher_parts.hidden(batch)
        hidden = student_parts.hidden(batch)
        with torch.no_grad():
            gradient = head_products(
                student_parts.projection(hidden.detach()),
                teacher_parts.projection(teacher_hidden),
                weight_gradient,
                job.chunk,
            )
        hidden.backward(gradient)  # type: ignore[no-untyped-call]
        student.zero_grad(set_to_none=True)
        clock.step_done()
    return clock.result([num_tokens(rows) for rows in batches])
