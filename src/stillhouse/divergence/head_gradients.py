"""What every chunked objective shares: room for gradients, and the matrix products with the head.

An objective goes through the target tokens chunk by chunk. For each chunk the head gives raw logits
(:func:`fill_logits`), the objective turns them into its gradient there, and :func:`add_head_gradients`
carries that on to hidden states, weight and bias. :func:`attach_gradients` then gives the finished
loss a graph that hands on what was formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from stillhouse.divergence.accumulate import add_converted
from stillhouse.divergence.objective import ObjectiveTerms
from stillhouse.errors import ModelError
from stillhouse.teachers.protocol import Projection

MAX_COMPILATIONS = 64
"""In one process: a study may go through many divergences, and dynamo's own limit is 8."""


@dataclass(frozen=True)
class HeadGradients:
    """What to differentiate, and where it goes; None where no gradient is wanted.

    hidden [N, H] in the hidden states' dtype; weight [V, H] and bias [V] in float32 (or float64).
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    product: Tensor | None = None
    """Where one chunk's product for ``weight`` is formed before it is added up."""

    @property
    def wanted(self) -> bool:
        return self.hidden is not None or self.weight is not None or self.bias is not None


@contextmanager
def forming_gradients(device_type: str) -> Iterator[None]:
    """Within it nothing records a graph or casts by itself: gradients are formed by hand, in known precisions."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device_type, enabled=False),
        torch._dynamo.config.patch(recompile_limit=MAX_COMPILATIONS),
    ):
        yield


def check_heads(student: Projection, labels: Tensor, teacher: Projection | None, terms: ObjectiveTerms) -> None:
    """Refuse heads that are too small; assert what the caller promises."""
    for name, projection in (("student", student), ("teacher", teacher)):
        if projection is None:
            continue
        if projection.weight.shape[0] < terms.vocab_size:
            raise ModelError(
                f"the {name}'s head has {projection.weight.shape[0]} rows, fewer than the {terms.vocab_size} ids "
                "of the shared vocabulary; its tokenizer does not belong to this model"
            )
        assert projection.hidden.dtype == projection.weight.dtype, "hidden states and head need one dtype"
        assert len(projection.hidden) == len(labels), "one hidden state per label"
    assert teacher is not None or terms.kd_weight == 0, "a divergence with weight needs a teacher"


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_sinks(student: Projection, accumulator: Tensor | None) -> HeadGradients:
    """Make room for the gradients that somebody wants."""
    enabled = torch.is_grad_enabled()
    dtype = accumulation_dtype(student.weight.dtype)
    if accumulator is not None:
        assert accumulator.dtype == dtype
        assert accumulator.shape == student.weight.shape
    hidden = weight = bias = product = None
    if enabled and student.hidden.requires_grad:
        hidden = torch.empty_like(student.hidden, requires_grad=False)
    if enabled and student.weight.requires_grad:
        weight = torch.zeros_like(student.weight, dtype=dtype) if accumulator is None else accumulator
        product = product_buffer(weight, student.weight.dtype)
    if enabled and student.bias is not None and student.bias.requires_grad:
        bias = torch.zeros_like(student.bias, dtype=dtype)
    return HeadGradients(hidden, weight, bias, product)


def gradient_factors(terms: ObjectiveTerms, normaliser: float | Tensor, like: Tensor) -> Tensor:
    """The three numbers of ``objective_rows`` that change from step to step, [3]."""
    dtype = accumulation_dtype(like.dtype)
    kd_weight = terms.kd_weight * terms.kd_scale / terms.temperature
    weights = torch.tensor([terms.ce_weight, kd_weight], dtype=dtype, device=like.device) / normaliser
    return torch.cat([weights.new_tensor([1 / terms.temperature]), weights])


def real_rows(projection: Projection, vocab_size: int) -> Projection:
    """Return the projection onto the V* real ids, outside every graph (views, no copies)."""
    bias = None if projection.bias is None else projection.bias.detach()[:vocab_size]
    return replace(
        projection, hidden=projection.hidden.detach(), weight=projection.weight.detach()[:vocab_size], bias=bias
    )


def fill_logits(head: Projection, start: int, stop: int, buffer: Tensor) -> Tensor:
    """Write raw logits of tokens [start, stop) into the buffer's first rows, zero the rest; return the filled rows."""
    filled = buffer[: stop - start]
    torch.mm(head.hidden[start:stop], head.weight.t(), out=filled)
    buffer[stop - start :].zero_()
    return filled


def add_head_gradients(raw_gradient: Tensor, student: Projection, start: int, stop: int, sinks: HeadGradients) -> None:
    """Carry the gradient at the raw logits [stop - start, V*] to hidden states, head and bias."""
    vocab_size = raw_gradient.shape[1]
    if sinks.hidden is not None:
        torch.mm(raw_gradient, student.weight, out=sinks.hidden[start:stop])
    if sinks.weight is not None:
        product = None if sinks.product is None else sinks.product[:vocab_size]
        add_product(sinks.weight[:vocab_size], raw_gradient, student.hidden[start:stop], product)
    if sinks.bias is not None:
        sinks.bias[:vocab_size] += raw_gradient.sum(0, dtype=sinks.bias.dtype)


def product_buffer(total: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return room [V, H] for ``add_product``, which needs none where products have the dtype of ``total``."""
    return None if total.dtype == dtype else torch.empty_like(total, dtype=dtype)


def add_product(total: Tensor, left: Tensor, right: Tensor, product: Tensor | None) -> None:
    """``total += left.T @ right`` with total [V, H] in float32 or float64, left [C, V], right [C, H].

    ``product`` comes from ``product_buffer`` and serves for every chunk: fresh memory is handed out
    page by page, which made this a third slower on CPU.
    """
    if product is None:
        total.addmm_(left.t(), right)
        return
    torch.mm(left.t(), right, out=product)
    add_converted(total, product)


def attach_gradients(loss: Tensor, student: Projection, sinks: HeadGradients, *, weight_is_done: bool) -> Tensor:
    """Return ``loss`` with a graph to the student's hidden states, weight and bias.

    ``weight_is_done``: the weight's gradient is in an accumulator of the caller's, so ``backward``
    must come with gradient 1 (checked there) and hands none to the weight.
    """
    attached: Tensor = _AttachGradients.apply(  # type: ignore[no-untyped-call]
        loss, student.hidden, student.weight, student.bias, sinks, weight_is_done
    )
    return attached


class _AttachGradients(torch.autograd.Function):
    """Gives a finished loss a graph whose backward hands on the gradients formed already."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradients: HeadGradients,
        weight_is_done: bool,
    ) -> Tensor:
        ctx.dtypes = (hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype)
        ctx.gradients, ctx.weight_is_done = replace(gradients, product=None), weight_is_done
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = upstream
        found: HeadGradients = ctx.gradients
        assert not ctx.weight_is_done or scale.item() == 1.0, "a head gradient in its accumulator cannot be scaled"
        sinks = (found.hidden, None if ctx.weight_is_done else found.weight, found.bias)
        return None, *(_scaled(sink, scale, dtype) for sink, dtype in zip(sinks, ctx.dtypes, strict=True)), None, None


def _scaled(gradient: Tensor | None, scale: Tensor, dtype: torch.dtype) -> Tensor | None:
    return None if gradient is None else gradient.to(dtype) * scale.to(dtype)
