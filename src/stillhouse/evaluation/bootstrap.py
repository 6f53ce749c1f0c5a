"""Uncertainty from the choice of test items: percentile bootstrap intervals, alone and paired.

The items are resampled and the model stays as it is, so such an interval says how much the score
depends on these questions. It knows nothing of the spread between training runs, which only
several seeds show, and understates what a repetition of the training would give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillhouse.randomness import numpy_generator

DRAWS = 10_000
SEED = 0
"""Every interval is drawn with this seed unless the caller names another."""
LEVEL = 0.95
_INDICES_AT_A_TIME = 2_000_000

Float64Array = npt.NDArray[np.float64]
Interval = tuple[float, float]


def bootstrap_interval(
    values: Sequence[float], weights: Sequence[float] | None = None, *, draws: int = DRAWS, seed: int = SEED
) -> Interval:
    """Return the 2.5 and 97.5 % quantiles of ``sum(values) / sum(weights)`` over resampled items.

    values [n] belong to one item each; weights [n] > 0 are the items' own denominators (None: all
    one, and the statistic is the mean). One item, or equal ones, give an interval of no width.
    """
    numerators = np.asarray(values, np.float64)
    if len(numerators) == 0:
        raise ValueError("a bootstrap needs at least one item")
    denominators = np.ones_like(numerators) if weights is None else np.asarray(weights, np.float64)
    statistics = [
        numerators[drawn].sum(1) / denominators[drawn].sum(1) for drawn in _resampled(len(numerators), draws, seed)
    ]
    return percentile_interval(np.concatenate(statistics))


def percentile_interval(statistics: Float64Array) -> Interval:
    """Return the quantiles of the drawn statistics [draws] that leave out half of 1 - ``LEVEL`` on each side."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """``delta`` is mean(a - b) over ``n`` items; ``standard_error`` its s.d. of the items over sqrt(n), in closed form.

    ``interval`` comes from ``draws`` resamplings of the items. None where one item shows no spread.
    """

    delta: float
    standard_error: float | None
    interval: Interval
    n: int
    draws: int


def paired_bootstrap(a: Sequence[float], b: Sequence[float], draws: int = DRAWS, seed: int = SEED) -> PairedDifference:
    """Compare two models on the same items: item i scores ``a[i]`` with one and ``b[i]`` with the other.

    Raises ValueError where the lengths differ or there is no item.
    """
    if len(a) != len(b):
        raise ValueError(f"paired scores need the same items: {len(a)} against {len(b)}")
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    interval = bootstrap_interval([float(d) for d in differences], draws=draws, seed=seed)
    n = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return PairedDifference(float(differences.mean()), error, interval, n, draws)


def _resampled(num_items: int, draws: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the drawn indices [some draws, n]; together ``draws`` rows."""
    generator = numpy_generator(seed, "bootstrap-items")
    at_a_time = max(1, _INDICES_AT_A_TIME // num_items)
    for start in range(0, draws, at_a_time):
        yield generator.integers(num_items, size=(min(at_a_time, draws - start), num_items))
