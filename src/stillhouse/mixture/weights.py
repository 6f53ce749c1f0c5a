"""Domain weights as numbers: checks, the weights that never move, quotas, and exact JSON.

A weight vector is float64 [D], not negative, with sum 1. A domain without training documents is
inactive: its weight is 0 whatever the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from stillhouse.data.document import BoolArray, Int64Array
from stillhouse.errors import DataError, RecipeError, did_you_mean

FloatArray = npt.NDArray[np.float64]

SUM_TOLERANCE = 1e-6
"""Weights typed by hand have rounded digits; more than this is a mistake and not rounding."""


def active_domains(domains: Sequence[str], tokens: Int64Array) -> BoolArray:
    """Return bool [D], True where a domain has training tokens (``tokens`` int64 [D]).

    Raises DataError when no domain has any.
    """
    assert len(tokens) == len(domains)
    active = np.asarray(tokens > 0)
    if not active.any():
        names = ", ".join(domains) or "none"
        raise DataError(f"data.train: no domain has training documents (domains: {names}); add rows")
    return active


def proportional_weights(domains: Sequence[str], tokens: Int64Array) -> FloatArray:
    """Each domain by its share of the training tokens, float64 [D]. Raises DataError when there are none."""
    active_domains(domains, tokens)
    return np.asarray(tokens / tokens.sum(), dtype=np.float64)


def equal_weights(domains: Sequence[str], tokens: Int64Array) -> FloatArray:
    """The same for every domain with training tokens, float64 [D]. Raises DataError when there are none."""
    active = active_domains(domains, tokens)
    return np.asarray(active / active.sum(), dtype=np.float64)


def fixed_weights(given: Mapping[str, float], domains: Sequence[str], tokens: Int64Array, *, where: str) -> FloatArray:
    """Weights by name as float64 [D]; ``where`` is the recipe field (or file) that they come from.

    Raises RecipeError for an unknown domain, one without a weight, one with a weight but no
    training documents, a weight that is negative or not finite, and a sum other than 1.
    """
    for name in given:
        if name not in domains:
            raise RecipeError(
                f"{where}.{name}: there is no such domain; the data has {', '.join(domains)}."
                f"{did_you_mean(name, domains)}"
            )
    missing = [name for name in domains if name not in given]
    if missing:
        raise RecipeError(f"{where}: no weight for {', '.join(missing)}; give 0 to leave a domain out")
    weights = np.array([given[name] for name in domains], dtype=np.float64)
    check_weights(weights, domains, tokens, where=where)
    return np.asarray(weights / weights.sum())


def check_weights(weights: FloatArray, domains: Sequence[str], tokens: Int64Array, *, where: str) -> None:
    """Raise RecipeError unless ``weights`` [D] can be drawn from domains with ``tokens`` [D] training tokens."""
    assert weights.shape == (len(domains),) == tokens.shape
    for name, weight, available in zip(domains, weights.tolist(), tokens.tolist(), strict=True):
        if not (np.isfinite(weight) and weight >= 0):
            raise RecipeError(f"{where}.{name}={weight}: a weight must be a number that is not negative")
        if weight > 0 and available == 0:
            raise RecipeError(
                f"{where}.{name}={weight}: this domain is empty, it has no training documents; give it 0 or add rows"
            )
    total = float(weights.sum())
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise RecipeError(f"{where}: the weights sum to {total:.8g}, not to 1; divide each of them by {total:.8g}")


def largest_remainder(weights: FloatArray, total: int) -> Int64Array:
    """Share ``total`` out by ``weights`` [D] in whole numbers, int64 [D] with sum ``total``.

    Each domain gets the floor of its share, and those with the largest remainders one more (ties:
    the earlier domain). A domain of weight 0 gets nothing.
    """
    shares = weights / weights.sum() * total
    quotas: Int64Array = np.floor(shares).astype(np.int64)
    left = total - int(quotas.sum())
    positive = np.flatnonzero(weights > 0)
    assert 0 <= left <= len(positive)
    order = positive[np.argsort(-(shares - quotas)[positive], kind="stable")]
    quotas[order[:left]] += 1
    return quotas


def floats_to_json(values: FloatArray) -> list[str]:
    """Hexadecimal text: exact, and valid JSON for infinities and NaN too."""
    return [float(value).hex() for value in values]


def floats_from_json(values: Sequence[str]) -> FloatArray:
    """The inverse of :func:`floats_to_json`, bit for bit."""
    return np.array([float.fromhex(value) for value in values], dtype=np.float64)
