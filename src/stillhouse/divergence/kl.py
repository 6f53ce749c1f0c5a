"""Forward and reverse Kullback-Leibler divergence (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from torch import Tensor

from stillhouse.divergence.base import Distribution, Divergence, unmasked, weighted


def forward_kl_terms(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum p log(p/q), a = -p; both inputs [N, V], value [N], a [N, V]."""
    return weighted(p.prob, p.log - q.log).sum(-1), unmasked(q, -p.prob)


def reverse_kl_terms(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
    """KL(q || p) = sum q log(q/p), a = q log(q/p) up to a multiple of q, which cancels in dz."""
    terms = weighted(q.prob, q.log - p.log)
    return terms.sum(-1), terms


def forward_kl() -> Divergence:
    """KL(teacher || student): the student covers everything the teacher may say."""
    return Divergence("forward_kl", forward_kl_terms, student_must_cover=True)


def reverse_kl() -> Divergence:
    """KL(student || teacher): the student says only what the teacher may say."""
    return Divergence("reverse_kl", reverse_kl_terms, teacher_must_cover=True)
