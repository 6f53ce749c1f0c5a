"""What a teacher is to the rest of the library, and what it hands over.

A teacher maps the N selected target positions of a batch to targets. It is frozen: evaluation
mode, no gradients, no optimizer state. Dense targets stay in factored form (hidden states and
head weights), so that logits exist one chunk of tokens at a time inside the divergence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from stillhouse.data.batch import Batch


@dataclass(frozen=True)
class Projection:
    """Hidden states with the head that turns them into logits.

    ``logits = softcap * tanh(z / softcap)`` (or ``z`` without a cap) where
    ``z = scale * (hidden @ weight.T + bias)``.

    hidden [N, H]; weight [V, H], which may carry padding rows beyond the real vocabulary;
    bias [V] or None; scale multiplies the logits (Cohere; Granite divides, so scale = 1/x);
    softcap is Gemma's final soft-capping, or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class DenseTargets:
    """The teacher's full distribution at N positions, in factored form.

    ``layers`` maps a decoder layer's index to its output at the same positions, [N, H_t].
    """

    projection: Projection
    layers: dict[int, Tensor] = field(default_factory=dict)


class Teacher(Protocol):
    """One protocol for every teacher: in-process model, and later cache and server."""

    @property
    def num_parameters(self) -> int: ...

    def targets(self, batch: Batch, layers: Sequence[int] = ()) -> DenseTargets:
        """Return targets for the positions that ``batch.loss_mask`` selects, in row-major order."""
        ...
