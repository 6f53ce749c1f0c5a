"""What the charts of a study are drawn with: points with intervals, axes, and sizes in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from stillhouse.report.charts import Figure, axis_title
from stillhouse.report.study_arms import ArmStyle
from stillhouse.report.table import interval
from stillhouse.report.text import MAX_LABEL, chart_label, count, number

MAX_GROUPS, MAX_ARMS = 4, 8
MAX_TICKS = 12
MIN_TICK_RATIO = 1.05
NATS = "nats per token"
Json = Mapping[str, Any]


def some_sizes(cells: Sequence[Json], limit: int = 3) -> list[str | None]:
    """Labels of the smallest, the middle and the largest size; all where there are no more than ``limit``."""
    ordered = list(dict.fromkeys(c["size"] for c in sorted(cells, key=lambda c: c["rows"] or 0.0)))
    if len(ordered) <= limit:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (limit - 1))] for i in range(limit)]


def points(
    style: ArmStyle,
    x: Sequence[Any],
    y: Sequence[Any],
    where: Sequence[str],
    mode: str,
    *,
    across: bool = False,
    thin: bool = False,
    line_dash: str | None = None,
) -> Figure:
    """Means with their intervals as error bars; ``across``: the intervals lie along x, else along y."""
    intervals: Sequence[Json] = x if across else y
    means = [found["mean"] for found in intervals]
    name = chart_label(style.name, 2 * MAX_LABEL)
    lines = [
        f"{name}<br>{place}{'<br>' if place else ''}{interval(i)}" for place, i in zip(where, intervals, strict=True)
    ]
    spread = {
        "type": "data",
        "symmetric": False,
        "array": [0 if i["high"] is None else i["high"] - i["mean"] for i in intervals],
        "arrayminus": [0 if i["low"] is None else i["mean"] - i["low"] for i in intervals],
        "visible": any(i["low"] is not None for i in intervals),
        "color": style.color,
        "thickness": 1.4,
        "width": 4,
    }
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": means if across else list(x),
        "y": list(y) if across else means,
        "error_x" if across else "error_y": spread,
        "marker": {"color": style.color, "symbol": style.symbol, "size": 8},
        "line": {"color": style.color, "width": 1.2 if thin else 2, "dash": line_dash or style.dash},
        "hoverinfo": "text",
        "hovertext": lines,
        "cliponaxis": False,
    }


def log_rows(layout: Figure, rows: Sequence[float]) -> Figure:
    """A logarithmic axis of training rows with a tick at each size that was run, as far as there is room."""
    shown: list[float] = []
    room = math.log(max(rows) / min(rows)) / MAX_TICKS
    for value in sorted(set(rows)):
        if not shown or math.log(value / shown[-1]) >= room:
            shown.append(value)
    return _log_axis(layout, "training rows", shown, [count(value) for value in shown])


def log_cost(layout: Figure, title: str, values: Sequence[float], show: Callable[[float], str]) -> Figure:
    """A logarithmic axis of costs with round ticks: 1, 2 and 5 times powers of ten, or these alone over a wide range."""
    low, high = min(values), max(values)
    steps = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if low / 1.3 <= tick <= high * 1.3]
    if len(ticks) < 2:  # a narrow range between two round numbers
        ticks = [low] if high / low < MIN_TICK_RATIO else [low, high]
    return _log_axis(layout, title, ticks, [show(tick) for tick in ticks])


def _log_axis(layout: Figure, title: str, ticks: list[float], labels: list[str]) -> Figure:
    axis = {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": labels, "title": axis_title(title)}
    layout["xaxis"] |= axis | {"minor": {"showgrid": False}}
    layout["hovermode"] = "closest"
    return layout


def categories(layout: Figure) -> None:
    """Names down the side, the first on top."""
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "showgrid": False}
    layout["hovermode"] = "closest"


def zero_line(axis: Literal["x", "y"]) -> Figure:
    """A line where neither is better: across the plot at y = 0, or upright at x = 0."""
    other = "y" if axis == "x" else "x"
    place = {f"{axis}ref": axis, f"{axis}0": 0, f"{axis}1": 0, f"{other}ref": "paper", f"{other}0": 0, f"{other}1": 1}
    return {"type": "line", "layer": "below", "line": {"color": "@muted", "width": 1.5}, **place}


def sized(cells: Sequence[Json]) -> list[Json]:
    """The cells whose number of training rows is known."""
    return [cell for cell in cells if cell["rows"] is not None]


def at_rows(cells: Sequence[Json]) -> list[str]:
    """``512 rows`` for each cell, for hovering."""
    return [f"{count(cell['rows'])} rows" for cell in cells]


def size_text(cell: Json) -> str:
    """A cell's training rows, or a dash."""
    return "–" if cell["rows"] is None else count(cell["rows"])


def size_prefix(size: str | None) -> str:
    """A size's label before another text, or nothing."""
    return f"{chart_label(size)}, " if size is not None else ""


def from_to(cells: Sequence[Json]) -> str:
    """Where a curve begins and ends, in words."""
    first, last = cells[0], cells[-1]
    return (
        f"from {number(first['nll']['mean'], 3)} at {count(first['rows'])} rows "
        f"to {number(last['nll']['mean'], 3)} at {count(last['rows'])}"
    )


def rounded(rows: float) -> float:
    """Three digits: no crossover is known better."""
    return float(f"{rows:.3g}")
