"""Alpha-beta divergence (Wang et al. 2025, ABKD, arXiv 2505.04560).

D(p, q) = -1/(alpha beta) sum [p^alpha q^beta - alpha/s p^s - beta/s q^s] with s = alpha + beta,
and its limits where one of the three is 0. (1, 0) is forward KL, (0, 1) reverse KL.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.divergence.base import Distribution, Divergence, unmasked, weighted
from stillhouse.errors import RecipeError

ZERO = 1e-9
"""Parameters closer to 0 than this are 0: 0.1 + 0.2 - 0.3 is not, in binary."""
SMALLEST = 1e-3
"""Between ZERO and this the formula subtracts nearly equal numbers and float32 has no digits left."""


def _settled(name: str, value: float, alpha: float, beta: float) -> float:
    """Return ``value``, or 0.0 if it is 0 but for rounding; refuse what float32 cannot compute."""
    if abs(value) < ZERO:
        return 0.0
    if abs(value) < SMALLEST:
        raise RecipeError(
            f"divergence alpha_beta: {name}={value:g} (alpha={alpha:g}, beta={beta:g}) is too close to 0 "
            f"for float32; use exactly 0 or at least {SMALLEST:g} in size"
        )
    return value


def _power(log_x: Tensor, exponent: float) -> Tensor:
    return (exponent * log_x).exp()


def _values(log_p: Tensor, log_q: Tensor, alpha: float, beta: float, s: float) -> Tensor:
    """The summands of D, [N, V]; ids masked in both rows are left to the caller."""
    if alpha == 0 and beta == 0:
        return 0.5 * (log_p - log_q).square()
    if beta == 0:
        p_alpha = _power(log_p, alpha)
        return (weighted(p_alpha, alpha * (log_p - log_q)) - p_alpha + _power(log_q, alpha)) / alpha**2
    if alpha == 0:
        return _values(log_q, log_p, beta, 0.0, s)
    if s == 0:
        return (alpha * (log_q - log_p) + _power(log_p - log_q, alpha) - 1) / alpha**2
    joint = (alpha * log_p + beta * log_q).exp()
    return (alpha / s * _power(log_p, s) + beta / s * _power(log_q, s) - joint) / (alpha * beta)


def _student_terms(log_p: Tensor, log_q: Tensor, alpha: float, beta: float, s: float) -> Tensor:
    """a = q^beta (q^alpha - p^alpha) / alpha, [N, V], or its limit at alpha = 0."""
    if alpha == 0:
        return _power(log_q, beta) * (log_q - log_p)
    joint = _power(log_p, alpha) if beta == 0 else (alpha * log_p + beta * log_q).exp()
    return (_power(log_q, s) - joint) / alpha


def alpha_beta(alpha: float, beta: float) -> Divergence:
    """The divergence for any real ``alpha`` and ``beta``; RecipeError within 0.001 of a limit but not on it."""
    s = _settled("alpha+beta", alpha + beta, alpha, beta)
    a, b = _settled("alpha", alpha, alpha, beta), _settled("beta", beta, alpha, beta)

    def terms(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        known = (p.log > -torch.inf) | (q.log > -torch.inf)
        values = torch.where(known, _values(p.log, q.log, a, b, s), 0.0)
        return values.sum(-1), unmasked(q, _student_terms(p.log, q.log, a, b, s))

    return Divergence(
        f"alpha_beta(alpha={a!r}, beta={b!r})",
        terms,
        student_must_cover=not (b > 0 and s > 0),
        teacher_must_cover=not (a > 0 and s > 0),
    )
