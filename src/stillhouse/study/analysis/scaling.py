"""Learning curves: L(D) = E + A * D^-alpha with E, A, alpha > 0, fitted over data sizes.

For a fixed alpha the curve is linear in E and A, so alpha alone is searched: a grid over
[0.05, 1.5] (the linear solve at each point is exact), zoomed in, then refined in the logarithms
of all three. The grid step is vectorised over many curves, because the bootstrap of a crossover
refits thousands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHA_BOUNDS = (0.05, 1.5)
MIN_SIZES = 5
"""Three parameters on fewer sizes than this are no fit; the difference is interpolated instead."""
_GRID, _ZOOMS, _ZOOM_GRID = 146, 4, 21

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """E + A * D^-alpha. ``amplitude`` 0: the losses do not fall with D, and alpha means nothing.

    ``at_bound``: alpha ended at a bound of its range, or E at zero, so the curve must not be
    extrapolated. ``rms`` is the root mean square of the residuals, in the unit of the losses.
    """

    floor: float
    amplitude: float
    alpha: float
    rms: float
    num_sizes: int
    at_bound: bool

    def at(self, size: float) -> float:
        """The predicted loss at a data size."""
        return float(self.floor + self.amplitude * size**-self.alpha)

    def slope(self, size: float) -> float:
        """dL / d ln D: what one e-fold more of data is worth there (negative: it helps)."""
        return float(-self.alpha * self.amplitude * size**-self.alpha)


def fit_power_law(sizes: Sequence[float], losses: Sequence[float], *, huber_delta: float | None = None) -> PowerLaw:
    """Fit one curve by least squares, or by Huber's loss with the given threshold (in the losses' unit).

    Raises ValueError for fewer than three different positive sizes or losses that are not finite.
    """
    from scipy.optimize import least_squares

    _check(sizes, losses)
    scale, x = _centred(sizes)
    y = np.asarray(losses, float)
    floors, amplitudes, alphas = fit_grid(sizes, y[None, :])
    floor, amplitude, alpha = float(floors[0]), float(amplitudes[0]) * scale ** -float(alphas[0]), float(alphas[0])
    if floor > 0 and amplitude > 0:
        bounds = (np.log([1e-300, 1e-300, ALPHA_BOUNDS[0]]), np.log([1e300, 1e300, ALPHA_BOUNDS[1]]))
        start = np.clip(np.log([floor, amplitude, alpha]), bounds[0] + 1e-9, bounds[1] - 1e-9)

        def residuals(logs: Floats) -> Floats:
            e, a, power = np.exp(logs)
            out: Floats = e + a * x**-power - y
            return out

        solved = least_squares(
            residuals,
            start,
            bounds=bounds,
            x_scale="jac",
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
            loss="linear" if huber_delta is None else "huber",
            f_scale=1.0 if huber_delta is None else huber_delta,
        )
        floor, amplitude, alpha = (float(v) for v in np.exp(solved.x))
    rms = float(np.sqrt(np.mean((floor + amplitude * x**-alpha - y) ** 2)))
    low, high = ALPHA_BOUNDS
    bound = amplitude > 0 and (alpha < low * 1.001 or alpha > high * 0.999 or floor < 1e-6 * y.mean())
    return PowerLaw(floor, amplitude * scale**alpha, alpha, rms, len(set(sizes)), bool(bound))


def fit_grid(sizes: Sequence[float], losses: Floats) -> tuple[Floats, Floats, Floats]:
    """Fit many curves over the same sizes by least squares: (floor, amplitude, alpha), float64 [R] each.

    losses [R, S]. The grid over alpha is zoomed ``_ZOOMS`` times, to about 1e-6. Where no falling
    curve fits better than a constant, amplitude is 0 and floor the mean.
    """
    scale, x = _centred(sizes)
    low, high = ALPHA_BOUNDS
    step = (high - low) / (_GRID - 1)
    alphas = np.broadcast_to(np.linspace(low, high, _GRID), (len(losses), _GRID))
    best = _best_of(x, losses, alphas)
    for _ in range(_ZOOMS):
        offsets = np.linspace(-step, step, _ZOOM_GRID)
        best = _best_of(x, losses, np.clip(best[2][:, None] + offsets, low, high))
        step = 2 * step / (_ZOOM_GRID - 1)
    floor, amplitude, alpha = best
    return floor, amplitude * scale**alpha, alpha


def _best_of(x: Floats, losses: Floats, alphas: Floats) -> tuple[Floats, Floats, Floats]:
    """The best (E, A >= 0) over the candidates alphas [R, G] for each row of losses [R, S]."""
    z = x[None, None, :] ** -alphas[:, :, None]
    y = losses[:, None, :]
    z_mean, y_mean = z.mean(-1), y.mean(-1)
    spread = ((z - z_mean[..., None]) ** 2).mean(-1)
    amplitude = ((z - z_mean[..., None]) * (y - y_mean[..., None])).mean(-1) / spread
    floor = y_mean - amplitude * z_mean
    # Outside E, A >= 0 the optimum lies on the nearer edge: a constant, or a curve down to zero.
    flat = amplitude <= 0
    to_zero = ~flat & (floor <= 0)
    amplitude = np.where(to_zero, (z * y).mean(-1) / (z * z).mean(-1), np.where(flat, 0.0, amplitude))
    floor = np.where(to_zero, 0.0, np.where(flat, np.broadcast_to(y_mean, flat.shape), floor))
    errors = ((floor[..., None] + amplitude[..., None] * z - y) ** 2).sum(-1)
    chosen = (np.arange(len(losses)), errors.argmin(-1))
    return floor[chosen], amplitude[chosen], alphas[chosen]


def _centred(sizes: Sequence[float]) -> tuple[float, Floats]:
    """Sizes over their geometric mean, and that mean: it keeps the solve well conditioned."""
    x = np.asarray(sizes, float)
    scale = math.exp(float(np.log(x).mean()))
    return scale, x / scale


def _check(sizes: Sequence[float], losses: Sequence[Any]) -> None:
    if len(set(sizes)) < 3 or len(sizes) != len(losses):
        raise ValueError(f"three parameters need at least three sizes with a loss each, got {len(set(sizes))}")
    if not all(math.isfinite(v) and v > 0 for v in sizes) or not all(math.isfinite(v) for v in losses):
        raise ValueError("sizes must be positive and losses finite")
