"""Panels of lines and dots as SVG, for the pictures in the docs: plain text, no dependency, small in a repository."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

COLOURS = ("#b5501b", "#1f6f8b", "#5b7f2b", "#7a4d9e", "#b08a12", "#b03a62", "#3f51a3", "#6b6b1f")
INK, FAINT = "#222222", "#dddddd"


class Plot:
    """A panel of an SVG: data coordinates in, shapes out. ``y`` grows upwards."""

    def __init__(
        self, place: tuple[float, float, float, float], x: tuple[float, float], y: tuple[float, float]
    ) -> None:
        self.left, self.top, self.width, self.height = place
        self._x, self._y = x, y
        self.parts: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Position on the page."""
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (y - self._y[0]) / (self._y[1] - self._y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 2, dash: str = "") -> None:
        found = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{found}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>')

    def dot(self, x: float, y: float, colour: str) -> None:
        px, py = self.at(x, y)
        self.parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>')

    def text(self, x: float, y: float, words: str, anchor: str = "start", colour: str = INK) -> None:
        """Text at a position on the page."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'
        )

    def y_axis(self, ticks: Sequence[float], form: str, title: str) -> None:
        for tick in ticks:
            self.line([(self._x[0], tick), (self._x[1], tick)], FAINT, 1)
            self.text(self.left - 6, self.at(self._x[0], tick)[1] + 4, format(tick, form), "end")
        self.text(self.left, self.top - 10, title)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range."""
    rough = max(high - low, 1e-6) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = int(low // step)
    found = [first * step]
    while found[-1] < high:
        found.append((first + len(found)) * step)
    return found


def page(width: int, height: int, title: str, plots: Sequence[Plot]) -> str:
    """Join panels into an SVG document."""
    body = "\n".join(part for plot in plots for part in plot.parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif" '
        f'font-size="12"><title>{escape(title)}</title><rect width="{width}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
