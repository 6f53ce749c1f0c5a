"""Skewed KL divergences (Ko et al. 2024, DistiLLM, arXiv 2402.03898).

Both mix a little of the first argument into the second, so they stay finite whatever is masked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillhouse.divergence.base import Distribution, Divergence, unmasked, weighted


def skewed_kl(alpha: float) -> Divergence:
    """KL(p || m) with m = alpha p + (1-alpha) q, 0 < alpha < 1; a = -(1-alpha) p q / m.

    DistiLLM's code logs the same quantity without the student-independent sum p log p.
    """
    log_alpha, log_rest = math.log(alpha), math.log1p(-alpha)

    def terms(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        log_m = torch.logaddexp(p.log + log_alpha, q.log + log_rest)
        share = (q.log + log_rest - log_m).exp()  # of the student in m, between 0 and 1
        return weighted(p.prob, p.log - log_m).sum(-1), unmasked(q, -p.prob * share)

    return Divergence(f"skewed_kl(alpha={alpha!r})", terms)


def skewed_reverse_kl(alpha: float) -> Divergence:
    """KL(q || m) with m = (1-alpha) p + alpha q, 0 < alpha < 1; a = q (log(q/m) - alpha q / m)."""
    log_alpha, log_rest = math.log(alpha), math.log1p(-alpha)

    def terms(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        log_m = torch.logaddexp(p.log + log_rest, q.log + log_alpha)
        share = (q.log + log_alpha - log_m).exp()
        value = weighted(q.prob, q.log - log_m)
        return value.sum(-1), value - weighted(q.prob, share)

    return Divergence(f"skewed_reverse_kl(alpha={alpha!r})", terms)
