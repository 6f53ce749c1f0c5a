"""Skewed KL divergences (Ko et al. 2024, DistiLLM, arXiv 2402.03898).

Both mix a little of the first argument into the second, so they stay finite whatever is masked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillhouse.divergence.base import Divergence, unmasked, weighted


def skewed_kl(alpha: float) -> Divergence:
    """KL(p || m) with m = alpha p + (1-alpha) q, 0 < alpha < 1; a = -(1-alpha) p q / m.

    DistiLLM's code logs the same quantity without the student-independent sum p log p.
    """
    log_alpha, log_rest = math.log(alpha), math.log1p(-alpha)

    def row_terms(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        p = log_p.exp()
        log_m = torch.logaddexp(log_p + log_alpha, log_q + log_rest)
        share = (log_q + log_rest - log_m).exp()  # of the student in m, between 0 and 1
        return weighted(p, log_p - log_m).sum(-1), unmasked(log_q, -p * share)

    return Divergence(f"skewed_kl(alpha={alpha!r})", row_terms)


def skewed_reverse_kl(alpha: float) -> Divergence:
    """KL(q || m) with m = (1-alpha) p + alpha q, 0 < alpha < 1; a = q (log(q/m) - alpha q / m)."""
    log_alpha, log_rest = math.log(alpha), math.log1p(-alpha)

    def row_terms(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        q = log_q.exp()
        log_m = torch.logaddexp(log_p + log_rest, log_q + log_alpha)
        share = (log_q + log_alpha - log_m).exp()
        value = weighted(q, log_q - log_m)
        return value.sum(-1), value - weighted(q, share)

    return Divergence(f"skewed_reverse_kl(alpha={alpha!r})", row_terms)
