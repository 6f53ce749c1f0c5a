"""What a divergence is: its row terms, and the one rule that turns them into logit gradients.

Every divergence D(p, q) compares the teacher p with the student q, row by row. Its
``row_terms(log_p, log_q)`` takes normalised log-probabilities [N, V] and returns ``value`` [N]
and ``a`` [N, V] with ``a_i = q_i * dD/dq_i``. Because q = softmax(z / T), the gradient at the
student's logits is ``dz = (a - q * sum(a)) / T`` for all of them. Forming ``a`` and not
``dD/dq`` keeps it finite where q underflows.

A divergence is written as a function of two ``Distribution``, each with its logarithm beside it:
the softmax has both at hand, and exponentials are what the pointwise work costs.

Ids at -inf in both rows contribute nothing, and ``a_i`` is 0 where the student masks id i.
Teacher mass on an id that the student masks makes some divergences infinite, and then the value
comes out as inf or nan, never as a silent zero; ``stillhouse.divergence.support`` names the id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Distribution(NamedTuple):
    """Normalised rows: probabilities and their logarithms, both [N, V]. Masked ids have 0 and -inf."""

    prob: Tensor
    log: Tensor


Terms = Callable[[Distribution, Distribution], tuple[Tensor, Tensor]]
"""(teacher p, student q) -> (value [N], a [N, V])."""


@dataclass(frozen=True)
class Divergence:
    """One divergence with its parameters bound.

    ``terms`` computes value and ``a`` from both distributions.
    ``name`` carries the parameters, so that two divergences with one name are the same function.
    ``student_must_cover``: infinite where the teacher has mass and the student is masked.
    ``teacher_must_cover``: infinite where the student has mass and the teacher is masked.
    """

    name: str
    terms: Terms = field(compare=False, repr=False)
    student_must_cover: bool = False
    teacher_must_cover: bool = False

    def row_terms(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``value`` [N] and ``a`` [N, V] from normalised log-probabilities [N, V]."""
        return self.terms(Distribution(log_p.exp(), log_p), Distribution(log_q.exp(), log_q))


def weighted(probability: Tensor, log_ratio: Tensor) -> Tensor:
    """Return ``probability * log_ratio``, and 0 where the probability is 0. Both [N, V]."""
    return torch.where(probability > 0, probability * log_ratio, 0.0)


def unmasked(q: Distribution, a: Tensor) -> Tensor:
    """Return ``a`` [N, V] with zeros at the ids that the student masks (not where q only underflows)."""
    return torch.where(q.log > -torch.inf, a, 0.0)


def logit_gradient(a: Tensor, q: Tensor) -> Tensor:
    """Return ``T * dD/dz = a - q * sum(a)``, [N, V]."""
    return a - q * a.sum(-1, keepdim=True)
