"""Each divergence as its printed formula on probabilities, in float64; gradients by plain autograd.

The library works on log-probabilities with hand-derived gradients; nothing is shared with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stillhouse.recipe import (
    JSD,
    AdaptiveKL,
    AlphaBeta,
    Config,
    ForwardKL,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    TotalVariation,
)

ALL_CONFIGS: tuple[Config, ...] = (
    ForwardKL(),
    ReverseKL(type="reverse_kl"),
    JSD(type="jsd", beta=0.1),
    JSD(type="jsd", beta=0.5),
    JSD(type="jsd", beta=0.9),
    JSD(type="jsd", beta=0),
    JSD(type="jsd", beta=1),
    SkewedKL(type="skewed_kl", alpha=0.1),
    SkewedReverseKL(type="skewed_reverse_kl", alpha=0.1),
    TotalVariation(type="tvd"),
    AdaptiveKL(type="adaptive_kl", mu=0.5),
    AdaptiveKL(type="adaptive_kl", mu=0.9),
    AlphaBeta(type="alpha_beta", alpha=0.2, beta=0.7),
    AlphaBeta(type="alpha_beta", alpha=0.5, beta=0),
    AlphaBeta(type="alpha_beta", alpha=0, beta=0.5),
    AlphaBeta(type="alpha_beta", alpha=0.5, beta=-0.5),
    AlphaBeta(type="alpha_beta", alpha=0, beta=0),
    AlphaBeta(type="alpha_beta", alpha=-0.5, beta=1.2),
)


def config_id(config: Config) -> str:
    """A short name for a parametrised test."""
    return "-".join(str(value) for value in config.model_dump().values())


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def _jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    if beta in (0, 1):
        return kl(p, q) if beta == 0 else kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def _adaptive(p: Tensor, q: Tensor, mu: float) -> Tensor:
    values = []
    for p_row, q_row in zip(p, q, strict=True):
        order = sorted(range(len(p_row)), key=lambda i: -float(p_row[i]))
        head: list[int] = []
        while sum(float(p_row[i]) for i in head) < mu and len(head) < len(order):
            head.append(order[len(head)])
        gaps = (p_row - q_row).abs().detach()
        of_head, total = gaps[head].sum(), gaps.sum()
        share = of_head / total if total > 0 else torch.tensor(0.5, dtype=p.dtype)
        values.append(share * kl(p_row, q_row) + (1 - share) * kl(q_row, p_row))
    return torch.stack(values)


def _alpha_beta(p: Tensor, q: Tensor, a: float, b: float) -> Tensor:
    if a == 0 and b == 0:
        return 0.5 * (p.log() - q.log()).pow(2).sum(-1)
    if b == 0:
        return (p**a * (p**a / q**a).log() - p**a + q**a).sum(-1) / a**2
    if a == 0:
        return (q**b * (q**b / p**b).log() - q**b + p**b).sum(-1) / b**2
    if a + b == 0:
        return ((q**a / p**a).log() + (q**a / p**a) ** -1 - 1).sum(-1) / a**2
    s = a + b
    return -(p**a * q**b - a / s * p**s - b / s * q**s).sum(-1) / (a * b)


FORMULAS: dict[type[Config], Callable[..., Tensor]] = {
    ForwardKL: lambda p, q, c: kl(p, q),
    ReverseKL: lambda p, q, c: kl(q, p),
    JSD: lambda p, q, c: _jsd(p, q, c.beta),
    SkewedKL: lambda p, q, c: kl(p, c.alpha * p + (1 - c.alpha) * q),
    SkewedReverseKL: lambda p, q, c: kl(q, (1 - c.alpha) * p + c.alpha * q),
    TotalVariation: lambda p, q, c: 0.5 * (p - q).abs().sum(-1),
    AdaptiveKL: lambda p, q, c: _adaptive(p, q, c.mu),
    AlphaBeta: lambda p, q, c: _alpha_beta(p, q, c.alpha, c.beta),
}


def divergence_of_logits(config: Config, teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """D(softmax(z_T / T), softmax(z_S / T)) for every row, float64 [N]; differentiable."""
    p = torch.softmax(teacher_logits.double() / temperature, -1)
    q = torch.softmax(student_logits.double() / temperature, -1)
    return FORMULAS[type(config)](p, q, config)


def value_and_gradient(
    config: Config, teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The divergence [N] and its gradient at the student's logits [N, V], float64."""
    z = student_logits.detach().double().requires_grad_()
    value = divergence_of_logits(config, teacher_logits.detach(), z, temperature)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient
