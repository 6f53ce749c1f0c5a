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
    from stillhouse.divergence.cross_tokenizer.merged import VocabularyMatch


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


@dataclass(frozen=True)
class AlignedTargets:
    """What a teacher with another tokenizer says, in groups of tokens that write the same text.

    projection: hidden states [M, H_t] that predict the M teacher tokens which stand in a group, in the
    order of the student's documents; its head is cut to the teacher's V* ids. tokens int64 [M]: those
    tokens. groups int64 [M]: the group of each, and student_groups int64 [N] that of each of the
    student's targets, -1 where it is in none. Groups are numbered from 0, in ascending order on both
    sides, and each has tokens of both. ``match``: which ids of both vocabularies write the same bytes.
    """

    projection: Projection
    tokens: Tensor
    groups: Tensor
    student_groups: Tensor
    match: VocabularyMatch


class Teacher(Protocol):
    """One protocol for every teacher: in-process model, and later cache and server."""

    @property
    def num_parameters(self) -> int: ...

    def targets(self, batch: Batch, layers: Sequence[int] = ()) -> DenseTargets:
        """Return targets for the positions that ``batch.loss_mask`` selects, in row-major order."""
        ...
