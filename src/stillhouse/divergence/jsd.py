"""Generalised Jensen-Shannon divergence (Agarwal et al. 2024, GKD, arXiv 2306.13649)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillhouse.divergence.base import Distribution, Divergence, weighted
from stillhouse.divergence.kl import forward_kl, reverse_kl


def jsd(beta: float) -> Divergence:
    """beta KL(p || m) + (1-beta) KL(q || m) with m = beta p + (1-beta) q.

    ``beta`` in [0, 1] is the teacher's weight in the mixture. The formula tends to 0 at both
    ends, so, as TRL does, 0 means exact forward KL and 1 exact reverse KL: the scale of the loss
    jumps there.
    """
    if beta == 0:
        return forward_kl()
    if beta == 1:
        return reverse_kl()
    log_beta, log_rest = math.log(beta), math.log1p(-beta)

    def terms(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        log_m = torch.logaddexp(p.log + log_beta, q.log + log_rest)
        of_student = (1 - beta) * weighted(q.prob, q.log - log_m)
        return (beta * weighted(p.prob, p.log - log_m) + of_student).sum(-1), of_student

    return Divergence(f"jsd(beta={beta!r})", terms)
