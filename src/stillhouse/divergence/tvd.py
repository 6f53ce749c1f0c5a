"""Total variation distance."""

from __future__ import annotations

from torch import Tensor

from stillhouse.divergence.base import Divergence


def tvd_terms(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """(1/2) sum |p - q|, a = (1/2) q sign(q - p); both inputs [N, V], value [N], a [N, V]."""
    q = log_q.exp()
    difference = q - log_p.exp()
    return 0.5 * difference.abs().sum(-1), 0.5 * q * difference.sign()


def tvd() -> Divergence:
    """Total variation distance, between 0 and 1."""
    return Divergence("tvd", tvd_terms)
