"""The data size where a method's advantage over the baseline is gone, with its uncertainty.

D* is the last root of ``L_baseline(D) - L_method(D)`` that changes from plus to minus, on fitted
curves (five sizes or more) between a third of the smallest size and ten times the largest, or on
the straight line between neighbouring sizes in log D (fewer sizes, no extrapolation). Seeds are
resampled jointly over methods and sizes, so the pairing stays. D* alone would mislead: the share
of resamples without a root always stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stillhouse.study.analysis.scaling import MIN_SIZES, Floats, PowerLaw, fit_grid, fit_power_law

SEARCH = (1 / 3, 10.0)
"""The search reaches from this share of the smallest size to this multiple of the largest."""
SEEDS_FOR_AN_INTERVAL = 8
DRAWS = 2000
_POINTS, _BISECTIONS = 512, 50

Status = Literal["crosses", "method_ahead", "baseline_ahead", "reverse", "level"]
Grid = Mapping[float, Mapping[int, float]]
"""Data size to seed to loss."""


@dataclass(frozen=True)
class Crossover:
    """Where ``method`` stops beating the baseline.

    ``size`` is D* in training rows, None where the curves do not cross so within the search:
    ``method_ahead`` and ``baseline_ahead`` throughout it, ``reverse`` where the method is behind
    first and ahead later, ``level`` where the two are the same. ``quantiles`` are the 2.5, 50 and 97.5 % points of the
    resamples that have a root; ``fraction_without_root`` counts those that have none. Both are None
    with one seed. ``interval_kind`` is ``range`` below eight seeds: too few for a 95 % interval.
    ``discarded`` resamples lacked a size altogether, because runs are missing.
    """

    size: float | None
    status: Status
    extrapolated: bool
    how: Literal["fit", "interpolation"]
    searched: tuple[float, float]
    quantiles: tuple[float, float, float] | None
    fraction_without_root: float | None
    interval_kind: Literal["range", "95 % interval", "none"]
    num_seeds: int
    num_sizes: int
    discarded: int
    baseline_fit: PowerLaw | None
    method_fit: PowerLaw | None


def find_crossover(
    baseline: Grid,
    method: Grid,
    generator: np.random.Generator,
    *,
    draws: int = DRAWS,
    huber_delta: float | None = None,
) -> Crossover | None:
    """Find D* and how sure it is; only (size, seed) pairs that both have are used.

    Losses in any unit that falls with quality (nats per token, or 1 - score). The resamples are
    fitted by least squares also under ``huber_delta``, which shapes the point estimate alone. None
    with fewer than two sizes in common.
    """
    sizes, base, other = _paired(baseline, method)
    if len(sizes) < 2:
        return None
    fits: tuple[PowerLaw, PowerLaw] | None = None
    means = np.nanmean(base, 1), np.nanmean(other, 1)
    if len(sizes) >= MIN_SIZES:
        fits = (
            fit_power_law(sizes, list(means[0]), huber_delta=huber_delta),
            fit_power_law(sizes, list(means[1]), huber_delta=huber_delta),
        )
        searched = (sizes[0] * SEARCH[0], sizes[-1] * SEARCH[1])
        points = np.geomspace(*searched, _POINTS)
        gaps = np.array([fits[0].at(d) - fits[1].at(d) for d in points])
        parameters = [np.array([[f.floor], [f.amplitude], [f.alpha]]) for f in fits]
        root = _last_root_of_curves(points, parameters[0], parameters[1])[0]
    else:
        searched = (sizes[0], sizes[-1])
        gaps = means[0] - means[1]
        root = _last_root_between(np.log(sizes), gaps[None, :])[0]
    roots, discarded = _resampled_roots(sizes, base, other, searched, generator, draws)
    found = roots[~np.isnan(roots)]
    num_seeds = base.shape[1]
    quantiles = None
    if len(found):
        low, middle, high = (float(v) for v in np.quantile(found, [0.025, 0.5, 0.975]))
        quantiles = (low, middle, high)
    size = None if math.isnan(root) else float(root)
    return Crossover(
        size=size,
        status="crosses" if size is not None else _status(gaps),
        extrapolated=size is not None and not sizes[0] <= size <= sizes[-1],
        how="fit" if fits else "interpolation",
        searched=searched,
        quantiles=quantiles,
        fraction_without_root=1 - len(found) / len(roots) if len(roots) else None,
        interval_kind=_kind(num_seeds),
        num_seeds=num_seeds,
        num_sizes=len(sizes),
        discarded=discarded,
        baseline_fit=fits[0] if fits else None,
        method_fit=fits[1] if fits else None,
    )


def _kind(num_seeds: int) -> Literal["range", "95 % interval", "none"]:
    if num_seeds < 2:
        return "none"
    return "range" if num_seeds < SEEDS_FOR_AN_INTERVAL else "95 % interval"


def _status(gaps: Floats) -> Status:
    if np.abs(gaps).max() < 1e-12:
        return "level"
    if (gaps >= 0).all():
        return "method_ahead"
    return "baseline_ahead" if (gaps <= 0).all() else "reverse"


def _paired(baseline: Grid, method: Grid) -> tuple[list[float], Floats, Floats]:
    """Common sizes, ascending, and the losses [S, seeds] of both; NaN where either lacks the pair."""
    common = {size: baseline[size].keys() & method[size].keys() for size in baseline.keys() & method.keys()}
    sizes = sorted(size for size, seeds in common.items() if seeds)
    seeds = sorted({seed for size in sizes for seed in common[size]})
    shape = (len(sizes), len(seeds))
    base, other = np.full(shape, np.nan), np.full(shape, np.nan)
    for i, size in enumerate(sizes):
        for j, seed in enumerate(seeds):
            if seed in common[size]:
                base[i, j], other[i, j] = baseline[size][seed], method[size][seed]
    return sizes, base, other


def _resampled_roots(
    sizes: Sequence[float],
    base: Floats,
    other: Floats,
    searched: tuple[float, float],
    generator: np.random.Generator,
    draws: int,
) -> tuple[Floats, int]:
    """D* of every resample of the seeds (NaN: no root), and how many resamples had to be discarded."""
    num_seeds = base.shape[1]
    if num_seeds < 2:
        return np.empty(0), 0
    chosen = generator.integers(0, num_seeds, (draws, num_seeds))
    present = ~np.isnan(base)
    counts = present[:, chosen].sum(-1).T  # [R, S]
    whole = (counts > 0).all(1)
    counts = counts[whole]
    means = [np.where(present, v, 0.0)[:, chosen].sum(-1).T[whole] / counts for v in (base, other)]
    discarded = int(draws - whole.sum())
    if len(sizes) < MIN_SIZES:
        return _last_root_between(np.log(sizes), means[0] - means[1]), discarded
    points = np.geomspace(*searched, _POINTS)
    curves = [np.stack(fit_grid(sizes, m)) for m in means]
    return _last_root_of_curves(points, curves[0], curves[1]), discarded


def _last_root_of_curves(points: Floats, base: Floats, other: Floats) -> Floats:
    """The last + to - root of the difference of fitted curves [3, R], or NaN, by bisection: [R]."""

    def gap(log_sizes: Floats) -> Floats:
        curves = [e[:, None] + a[:, None] * np.exp(-p[:, None] * log_sizes) for e, a, p in (base, other)]
        out: Floats = curves[0] - curves[1]
        return out

    logs = np.log(points)
    values = gap(np.broadcast_to(logs, (base.shape[1], len(logs))))
    place = _last_change(values)
    low, high = logs[np.maximum(place, 0)], logs[np.maximum(place, 0) + 1]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        positive = gap(middle[:, None])[:, 0] > 0
        low, high = np.where(positive, middle, low), np.where(positive, high, middle)
    return np.where(place < 0, np.nan, np.exp((low + high) / 2))


def _last_root_between(logs: Floats, values: Floats) -> Floats:
    """The last + to - root of straight lines between neighbours: logs [S], values [R, S] -> [R], NaN for none."""
    place = _last_change(values)
    at = np.maximum(place, 0)
    rows = np.arange(len(values))
    left, right = values[rows, at], values[rows, at + 1]
    share = np.divide(left, left - right, out=np.zeros_like(left), where=left != right)
    return np.where(place < 0, np.nan, np.exp(logs[at] + share * (logs[at + 1] - logs[at])))


def _last_change(values: Floats) -> NDArrayInt:
    """Index of the last i with values[i] > 0 >= values[i+1], or > at a zero that goes on to minus; -1 for none."""
    changes = (values[:, :-1] > 0) & (values[:, 1:] <= 0)
    last = values.shape[1] - 2 - changes[:, ::-1].argmax(1)
    return np.where(changes.any(1), last, -1)


NDArrayInt = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
