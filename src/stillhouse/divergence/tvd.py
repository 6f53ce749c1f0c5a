"""Total variation distance."""

from __future__ import annotations

from torch import Tensor

from stillhouse.divergence.base import Distribution, Divergence


def tvd_terms(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
    """(1/2) sum |p - q|, a = (1/2) q sign(q - p); both inputs [N, V], value [N], a [N, V]."""
    difference = q.prob - p.prob
    return 0.5 * difference.abs().sum(-1), 0.5 * q.prob * difference.sign()


def tvd() -> Divergence:
    """Total variation distance, between 0 and 1."""
    return Divergence("tvd", tvd_terms)
