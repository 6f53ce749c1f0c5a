"""From a pilot's sizes to the full one, with an interval that also holds what the pilot cannot know.

One seed's values are carried on in several ways (they stay as at the largest size; a straight line in
the logarithm of the data; fitted power laws where there are five sizes), each way gets a Student-t
interval over the seeds, and the prediction's interval covers all of them. So it is wide where the
answer hangs on the shape of the curve, and a decision is made only where every way agrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stillhouse.study.adviser.evidence import Evidence
from stillhouse.study.analysis.gains import line_slope
from stillhouse.study.analysis.intervals import Interval, t_interval
from stillhouse.study.analysis.rows import mean
from stillhouse.study.analysis.scaling import MIN_SIZES, PowerLaw, fit_power_law

MAX_FACTOR = 10.0
"""Nothing is predicted beyond this multiple of the largest pilot size."""
FLATTENING = 0.5
"""Where no curve can be fitted, a slope is taken to shrink at most by (D / D_pilot)^-0.5: laws of language
models have exponents below that."""


@dataclass(frozen=True)
class Prediction:
    """A value at ``rows``; ``low`` and ``high`` are None with one seed.

    ``factor`` is how many times the largest pilot size that is. ``ways`` gives each way of carrying on
    its own interval over the seeds; ``mean`` is the fitted curves' where they exist, else the mean of all ways.
    """

    mean: float
    low: float | None
    high: float | None
    rows: float
    factor: float
    num_seeds: int
    ways: dict[str, Interval]

    @property
    def too_far(self) -> bool:
        """True beyond ``MAX_FACTOR`` times the largest pilot size."""
        return self.factor > MAX_FACTOR * (1 + 1e-9)

    def shifted(self, offset: float) -> Prediction:
        """The prediction of the value plus a constant that is known exactly."""
        ways = {name: _shift(way, offset) for name, way in self.ways.items()}
        return combine(ways, self.rows, self.factor)


def predict_gain(evidence: Evidence) -> Prediction | None:
    """NLL of the baseline less that of the method at the full size (positive: the method is better).

    None where no seed has both methods at two sizes.
    """
    sizes, seeds = evidence.sizes, evidence.seeds
    if len(sizes) < 2 or not seeds:
        return None
    gains = [[evidence.baseline_losses[d][s] - evidence.method_losses[d][s] for d in sizes] for s in seeds]
    values = {"stays": [g[-1] for g in gains], "line": [_line(sizes, g)(evidence.full_rows) for g in gains]}
    base, method = _fits(evidence.baseline_losses, sizes, seeds), _fits(evidence.method_losses, sizes, seeds)
    if base is not None and method is not None:
        pairs = zip(base, method, strict=True)
        values["fits"] = [b.at(evidence.full_rows) - m.at(evidence.full_rows) for b, m in pairs]
    return _combined(values, evidence)


def predict_loss(evidence: Evidence, losses: Mapping[float, Mapping[int, float]]) -> Prediction | None:
    """NLL of one of the pilot's methods at the full size; None as for ``predict_gain``."""
    sizes, seeds = evidence.sizes, evidence.seeds
    if len(sizes) < 2 or not seeds:
        return None
    series = [[losses[d][s] for d in sizes] for s in seeds]
    values = {"stays": [v[-1] for v in series], "line": [_line(sizes, v)(evidence.full_rows) for v in series]}
    fits = _fits(losses, sizes, seeds)
    if fits is not None:
        values["fits"] = [fit.at(evidence.full_rows) for fit in fits]
    return _combined(values, evidence)


def predict_doubling(evidence: Evidence, losses: Mapping[float, Mapping[int, float]]) -> Prediction | None:
    """By how much twice the full data would lower the NLL; None as for ``predict_gain``.

    Without fits the slope between the two largest sizes is carried on as it is, and flattened.
    """
    sizes, seeds = evidence.sizes, evidence.seeds
    if len(sizes) < 2 or not seeds:
        return None
    factor = max(1.0, evidence.full_rows / sizes[-1])
    last = [(losses[sizes[-2]][s] - losses[sizes[-1]][s]) / math.log(sizes[-1] / sizes[-2]) for s in seeds]
    values = {
        "same slope": [slope * math.log(2) for slope in last],
        "flattened slope": [slope * math.log(2) * factor**-FLATTENING for slope in last],
    }
    fits = _fits(losses, sizes, seeds)
    if fits is not None:
        values["fits"] = [fit.at(evidence.full_rows) - fit.at(2 * evidence.full_rows) for fit in fits]
    return _combined(values, evidence)


def combine(ways: dict[str, Interval], rows: float, factor: float) -> Prediction:
    """One interval that covers all ways."""
    lows = [way.low for way in ways.values() if way.low is not None]
    highs = [way.high for way in ways.values() if way.high is not None]
    centre = ways["fits"].mean if "fits" in ways else mean(way.mean for way in ways.values())
    return Prediction(
        mean=centre,
        low=min(lows) if lows else None,
        high=max(highs) if highs else None,
        rows=rows,
        factor=factor,
        num_seeds=min(way.n for way in ways.values()),
        ways=ways,
    )


def _combined(values: Mapping[str, Sequence[float]], evidence: Evidence) -> Prediction:
    ways = {name: t_interval(found) for name, found in values.items()}
    return combine(ways, evidence.full_rows, evidence.full_rows / evidence.sizes[-1])


def _line(sizes: Sequence[float], values: Sequence[float]) -> Callable[[float], float]:
    """The least-squares line in ln(size)."""
    points = [(math.log(d), v) for d, v in zip(sizes, values, strict=True)]
    slope = line_slope(points)
    x_mean, y_mean = mean(x for x, _ in points), mean(values)
    return lambda size: y_mean + slope * (math.log(size) - x_mean)


def _fits(
    losses: Mapping[float, Mapping[int, float]], sizes: Sequence[float], seeds: Sequence[int]
) -> list[PowerLaw] | None:
    """A fit per seed; None with too few sizes, or where one hit a bound and must not be carried on."""
    if len(sizes) < MIN_SIZES:
        return None
    fits = [fit_power_law(sizes, [losses[d][seed] for d in sizes]) for seed in seeds]
    return None if any(fit.at_bound for fit in fits) else fits


def _shift(way: Interval, offset: float) -> Interval:
    low = None if way.low is None else way.low + offset
    high = None if way.high is None else way.high + offset
    return Interval(way.mean + offset, low, high, way.n, way.standard_error, way.source, way.level)
