"""Adaptive KL (Wu et al. 2024, arXiv 2404.02657): forward KL for the head, reverse for the tail."""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.divergence.base import Distribution, Divergence
from stillhouse.divergence.kl import forward_kl_terms, reverse_kl_terms

FIRST_GUESS = 64
"""Most heads are far smaller than this; rows that need more ids are looked at again."""


@torch.library.custom_op("stillhouse::head_mask", mutates_args=())
def head_mask(p: Tensor, mu: float) -> Tensor:
    """Return bool [N, V]: the smallest set of each row's largest probabilities with mass >= mu.

    The id that crosses ``mu`` belongs to the set; released codes disagree about it. An opaque
    operator, because how many ids to sort depends on the data and a compiler cannot see that.
    """
    mask = torch.zeros_like(p, dtype=torch.bool)
    rows = torch.arange(p.shape[0], device=p.device)
    k = FIRST_GUESS
    while rows.numel():
        k = min(k, p.shape[1])
        values, ids = p[rows].topk(k, dim=-1)
        mass = values.cumsum(-1)
        mask[rows[:, None], ids] = mass - values < mu
        if k == p.shape[1]:
            break
        rows = rows[mass[:, -1] < mu]
        k *= 16
    return mask


@head_mask.register_fake
def _(p: Tensor, mu: float) -> Tensor:  # noqa: ARG001  # the operator's signature
    return torch.empty_like(p, dtype=torch.bool)


def adaptive_kl(mu: float) -> Divergence:
    """(G_h FKL + G_t RKL) / (G_h + G_t), where G_h and G_t are sum |p - q| over head and tail.

    The head is the teacher's smallest set with mass >= ``mu``. The weights are constants of the
    gradient, and 1/2 each where p = q.
    """

    def terms(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        gap = (p.prob - q.prob).abs()
        total = gap.sum(-1)
        head = torch.where(head_mask(p.prob, mu), gap, 0.0).sum(-1)
        share = torch.where(total > 0, head / total, 0.5)
        forward_value, forward_a = forward_kl_terms(p, q)
        reverse_value, reverse_a = reverse_kl_terms(p, q)
        value = share * forward_value + (1 - share) * reverse_value
        weight = share[:, None]
        return value, weight * forward_a + (1 - weight) * reverse_a

    return Divergence(f"adaptive_kl(mu={mu!r})", terms, student_must_cover=True, teacher_must_cover=True)
