"""The one table from recipe classes to divergences. A new divergence is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from stillhouse.divergence.adaptive import adaptive_kl
from stillhouse.divergence.alpha_beta import alpha_beta
from stillhouse.divergence.base import Divergence
from stillhouse.divergence.jsd import jsd
from stillhouse.divergence.kl import forward_kl, reverse_kl
from stillhouse.divergence.skewed import skewed_kl, skewed_reverse_kl
from stillhouse.divergence.tvd import tvd
from stillhouse.recipe import (
    JSD,
    AdaptiveKL,
    AlphaBeta,
    Config,
    DivergenceConfig,
    ForwardKL,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    TotalVariation,
)

DIVERGENCES: dict[type[Config], Callable[..., Divergence]] = {
    ForwardKL: lambda config: forward_kl(),  # noqa: ARG005
    ReverseKL: lambda config: reverse_kl(),  # noqa: ARG005
    JSD: lambda config: jsd(config.beta),
    SkewedKL: lambda config: skewed_kl(config.alpha),
    SkewedReverseKL: lambda config: skewed_reverse_kl(config.alpha),
    TotalVariation: lambda config: tvd(),  # noqa: ARG005
    AdaptiveKL: lambda config: adaptive_kl(config.mu),
    AlphaBeta: lambda config: alpha_beta(config.alpha, config.beta),
}


def build_divergence(config: DivergenceConfig) -> Divergence:
    """Return the divergence that a recipe names.

    Raises RecipeError where parameters lie too close to a limit for float32.
    """
    return DIVERGENCES[type(config)](config)
