"""Plain tables: what a chart shows, for those who cannot see it, and results that are read in rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.report.text import count, number

MAX_ROWS = 200
CURVE_ROWS = 12
Curve = tuple[str, Sequence[float], Sequence[float | None]]
"""Name, x and y."""


@dataclass(frozen=True)
class Table:
    """Cells as text, the first of each row being its header; what follows a line break in a cell is set smaller.

    The first ``num_words`` columns are words and stand to the left, numbers to the right; ``omitted``
    rows were too many to show.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_words: int = 1
    omitted: int = 0


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    num_words: int = 1,
    limit: int = MAX_ROWS,
) -> Table:
    """Make a table of at most ``limit`` rows and count the others."""
    listed = [tuple(row) for row in rows]
    return Table(caption, tuple(columns), tuple(listed[:limit]), num_words, max(0, len(listed) - limit))


def interval(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Return ``0.045 (0.020 to 0.070)`` for an interval of ``analysis.json``; one seed is said to be one."""
    if found is None:
        return "–"
    centre = number(found["mean"], digits)
    if found["low"] is None or found["high"] is None:
        return f"{centre} (one seed)"
    return f"{centre} ({number(found['low'], digits)} to {number(found['high'], digits)})"


def stacked(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    """An interval for a narrow column: the mean, and under it the interval."""
    return interval(found, digits).replace(" (", "\n").removesuffix(")")


def curve_table(caption: str, x_name: str, curves: Sequence[Curve]) -> Table:
    """About ``CURVE_ROWS`` points of curves given as (name, x, y), the first and the last among them."""
    every = sorted({x for _, xs, _ in curves for x in xs})
    last = len(every) - 1
    steps = min(last, CURVE_ROWS - 1)
    chosen = [every[round(i * last / steps)] for i in range(steps + 1)] if steps > 0 else every
    found = [dict(zip(xs, ys, strict=True)) for _, xs, ys in curves]
    rows = [(count(x), *(number(values.get(x), 3) for values in found)) for x in chosen]
    if len(every) > len(chosen):
        caption = f"{caption} {len(chosen)} of {len(every)} points."
    return table(caption, [x_name, *(name for name, _, _ in curves)], rows)
