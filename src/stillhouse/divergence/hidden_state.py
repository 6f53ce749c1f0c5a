"""Hidden-state alignment after TED (Liang et al. 2023, arXiv 2210.01351).

Filters keep what a task needs of a layer's output. Stage I, for teacher and student separately: the
backbone is frozen and each filter is trained on the task loss alone (:func:`filter_task_loss`).
Stage II: teacher and teacher filters are frozen, and student and student filters are trained on
CE + a_kl * KL + a_mse * :func:`alignment_loss`. Filters are modules of their own, never part of the
model, so an exported student has none. Teacher and student share the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stillhouse.errors import RecipeError
from stillhouse.randomness import torch_generator
from stillhouse.teachers.protocol import Projection


@dataclass(frozen=True)
class HiddenTargets:
    """A teacher's full distribution at N positions, and what its layers should look like there.

    ``goals``: M tensors [N, d_f], the filtered outputs of its chosen layers.
    """

    projection: Projection
    goals: tuple[Tensor, ...]


def layer_map(num_filters: int, num_layers: int) -> tuple[int, ...]:
    """Equally spaced layers: filter k of M belongs to layer k * L / M (half rounds up), counted from 1.

    Used for the teacher's depth and for the student's, so the last filter sits on the last layer of
    either. Subtract 1 for ``DenseTargets.layers``, which counts from 0.

    Raises RecipeError when there are more filters than layers.
    """
    assert num_filters >= 1
    if num_filters > num_layers:
        raise RecipeError(
            f"objective.filters={num_filters}: the model has only {num_layers} layers; use at most {num_layers}"
        )
    return tuple((2 * k * num_layers + num_filters) // (2 * num_filters) for k in range(1, num_filters + 1))


class Filter(nn.Module):
    """Linear map [N, in] -> [N, out] without bias, or an MLP with one hidden layer (GELU) in its place.

    A square linear filter starts as the identity, so that the model's own norm and head read it
    sensibly from the first step; anything else starts from N(0, 1/in), drawn from ``generator``.
    """

    def __init__(
        self, in_features: int, out_features: int, *, generator: torch.Generator, mlp_features: int | None = None
    ) -> None:
        super().__init__()
        self.first = _empty_linear(in_features, mlp_features or out_features)
        self.second = _empty_linear(mlp_features, out_features) if mlp_features else None
        if self.second is None and in_features == out_features:
            nn.init.eye_(self.first.weight)
            return
        for linear in (self.first, self.second):
            if linear is not None:
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """``hidden`` [N, in] in any floating dtype; returns [N, out] in the filter's."""
        result: Tensor = self.first(hidden.to(self.first.weight.dtype))
        return result if self.second is None else self.second(nn.functional.gelu(result))


def _empty_linear(in_features: int, out_features: int) -> nn.Linear:
    """A float32 layer without values: the usual constructor would draw from the global generator."""
    return nn.Linear(in_features, out_features, bias=False, device="meta", dtype=torch.float32).to_empty(device="cpu")


def make_filters(
    num_filters: int, in_features: int, out_features: int, *, seed: int, side: str, mlp_features: int | None = None
) -> nn.ModuleList:
    """One filter per chosen layer; ``side`` ("teacher" or "student") and number derive each one's draws."""
    return nn.ModuleList(
        Filter(
            in_features, out_features, generator=torch_generator(seed, f"filter {side}", k), mlp_features=mlp_features
        )
        for k in range(num_filters)
    )


def filter_task_loss(hidden: Sequence[Tensor], filters: nn.ModuleList, task_loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Stage I: the mean over filters of ``task_loss(F_k(h_k))``, a scalar; the backbone gets no gradient.

    ``hidden``: M tensors [N, d], the outputs of the chosen layers at the target positions.
    ``task_loss`` maps [N, d_f] to the CE of the task in nats, divided by the tokens of the whole
    optimizer step. For a language model with d_f = d it is the model's own frozen final norm and
    head. Each filter is judged alone: none sees another's output.
    """
    losses = [task_loss(each(h.detach())) for each, h in zip(filters, hidden, strict=True)]
    return torch.stack(losses).mean()


def masked_mse(
    student_h: Tensor, teacher_h: Tensor, mask: Tensor | None = None, *, normaliser: float | Tensor | None = None
) -> Tensor:
    """Mean of (student - teacher)^2 over unmasked tokens and features, a float32 scalar.

    student_h, teacher_h [N, d]; mask bool [N], True where a token counts (None: all do);
    ``normaliser``: the tokens of the whole optimizer step over micro-batches and ranks, where this is
    one part of it (None: the tokens of this mask). Without a counted token: zero with a graph.
    A masked row may hold anything, NaN included. Gradients flow to both arguments.
    """
    if mask is not None:
        student_h, teacher_h = student_h[mask], teacher_h[mask]
    squares = (student_h.float() - teacher_h.float()).square()
    tokens = max(1, squares.shape[0]) if normaliser is None else normaliser
    return squares.sum() / (tokens * squares.shape[1])


def alignment_loss(
    student_hidden: Sequence[Tensor],
    goals: Sequence[Tensor],
    student_filters: nn.ModuleList,
    *,
    mask: Tensor | None = None,
    normaliser: float | Tensor | None = None,
) -> Tensor:
    """Stage II: 1/M sum_k MSE(F^S_k(h^S_k), F^T_k(h^T_k)), a float32 scalar; the teacher's side gets no gradient.

    ``student_hidden``: M tensors [N, d_S]; ``goals``: M tensors [N, d_f] of :func:`filtered`, from the
    teacher's layers of :func:`layer_map`; ``mask`` and ``normaliser`` as in :func:`masked_mse`.
    """
    losses = [
        masked_mse(student(h), goal.detach(), mask, normaliser=normaliser)
        for h, goal, student in zip(student_hidden, goals, student_filters, strict=True)
    ]
    return torch.stack(losses).mean()


def unit_scale(hidden: Tensor) -> Tensor:
    """Scale each row of [N, d] to a root mean square of 1, in float32; gradients flow.

    TED's authors align models whose layers end in a norm. Layers of today's decoders do not: their
    outputs grow with depth, and a weight for their MSE would mean something else in every model.
    """
    values = hidden.float()
    return values * torch.rsqrt(values.square().mean(dim=-1, keepdim=True) + 1e-6)


@torch.no_grad()
def filtered(hidden: Sequence[Tensor], filters: nn.ModuleList) -> tuple[Tensor, ...]:
    """What frozen filters make of M layer outputs [N, d]: M tensors [N, d_f]."""
    return tuple(each(h) for h, each in zip(hidden, filters, strict=True))
