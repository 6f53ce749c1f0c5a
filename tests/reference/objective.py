"""The objective with whole logits in memory, in float64, differentiated by autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from reference.divergences import divergence_of_logits
from stillhouse.recipe import KDObjective, SFTObjective
from stillhouse.teachers.protocol import Projection


@dataclass(frozen=True)
class Reference:
    loss: Tensor
    ce: Tensor
    kd: Tensor | None
    d_hidden: Tensor
    d_weight: Tensor
    d_bias: Tensor | None
    ce_grad_square: Tensor
    kd_grad_square: Tensor
    """Squared weighted gradients at the final logits, before the normaliser."""


def logits_of(projection: Projection) -> Tensor:
    """``model(x).logits`` as the protocol describes them, in the dtype of the projection."""
    z = linear(projection.hidden, projection.weight, projection.bias) * projection.scale
    return z if projection.softcap is None else torch.tanh(z / projection.softcap) * projection.softcap


def double(projection: Projection) -> Projection:
    """Detached float64 copies that require gradients."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().double().requires_grad_()

    bias = None if projection.bias is None else leaf(projection.bias)
    return Projection(leaf(projection.hidden), leaf(projection.weight), bias, projection.scale, projection.softcap)


def dense_objective(
    student: Projection,
    labels: Tensor,
    teacher: Projection | None,
    objective: KDObjective | SFTObjective,
    vocab_size: int,
    normaliser: float,
) -> Reference:
    """Evaluate the recipe's objective and every gradient of it."""
    student = double(student)
    z = logits_of(student)[:, :vocab_size]
    ce_weight, kd_weight = objective.weights
    ce = cross_entropy(z, labels, reduction="none")
    ce_part, kd_part, kd = ce_weight * ce.sum(), torch.zeros((), dtype=z.dtype), None
    if teacher is not None and isinstance(objective, KDObjective):
        y = logits_of(double(teacher)).detach()[:, :vocab_size]
        kd = divergence_of_logits(objective.divergence, y, z, objective.temperature)
        kd = kd * objective.temperature**2 if objective.scale_t2 else kd
        kd_part = kd_weight * kd.sum()
    squares = []
    for part in (ce_part, kd_part):
        at_logits = torch.autograd.grad(part, z, retain_graph=True)[0] if part.requires_grad else torch.zeros(1)
        squares.append(at_logits.pow(2).sum())
    loss = (ce_part + kd_part) / normaliser
    leaves = [student.hidden, student.weight] + ([] if student.bias is None else [student.bias])
    gradients = torch.autograd.grad(loss, leaves)
    return Reference(
        loss=loss.detach(),
        ce=ce.detach(),
        kd=None if kd is None else kd.detach(),
        d_hidden=gradients[0],
        d_weight=gradients[1],
        d_bias=gradients[2] if student.bias is not None else None,
        ce_grad_square=squares[0],
        kd_grad_square=squares[1],
    )
