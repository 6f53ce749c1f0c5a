"""Plotly figures as plain JSON: ``{"data": [...], "layout": {...}}``.

Colors are names like ``@student``, replaced in the page by the CSS variable of that name, so that a
figure follows light, dark and print. Foreign strings enter only through ``chart_label``.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillhouse.report.table import Table, curve_table
from stillhouse.report.text import MAX_LABEL, chart_label, clip, count, number

MAX_POINTS = 400
MAX_DOMAIN_LINES = 12
BAR_HEIGHT, BAR_MARGIN = 18, 74
DASHES = {"solid": "1 0", "dash": "6 3", "dot": "2 2", "dashdot": "6 2 2 2"}
"""Plotly's names as SVG's dash arrays."""

Figure = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A figure with its title, what it shows in words (for those who cannot see it), and a note on how to read it."""

    id: str
    title: str
    description: str
    note: str
    figure: Figure
    table: Table | None = None
    """The same in numbers; None where such a table stands beside the chart anyway."""

    @property
    def legend(self) -> list[LegendItem]:
        """Names with the look of their traces, where there is more than one; the page makes buttons of them.

        Plotly's own legend grows into the plot on a narrow screen, and the keyboard does not reach it.
        """
        items: dict[str, LegendItem] = {}
        for trace in self.figure["data"]:
            name = trace.get("name")
            if name is not None and name not in items and trace.get("showlegend", True):
                items[name] = _legend_item(trace)
        for index, trace in enumerate(self.figure["data"]):
            if trace.get("name") in items:
                items[trace["name"]].traces.append(index)
        return list(items.values()) if len(items) > 1 else []


@dataclass(frozen=True)
class LegendItem:
    """One name of a legend: a CSS variable for its color, SVG dashes, a symbol, and the traces that it stands for."""

    name: str
    color: str
    dashes: str
    symbol: str
    traces: list[int]


@dataclass(frozen=True)
class Series:
    """One group of bars or one curve."""

    name: str
    color: str
    values: Sequence[float | None]


def _legend_item(trace: Figure) -> LegendItem:
    """The name unescaped again: a legend is text of the page, which Jinja escapes."""
    mode = trace.get("mode", "bar")
    marker = trace.get("marker", {})
    return LegendItem(
        name=html.unescape(trace["name"]),
        color=str(trace["line"]["color"] if mode == "lines" else marker["color"]).removeprefix("@"),
        dashes=DASHES[trace["line"].get("dash", "solid")] if "lines" in mode else "",
        symbol="bar" if mode == "bar" else marker.get("symbol", "circle") if "markers" in mode else "",
        traces=[],
    )


def domain_bars(
    domains: Sequence[str],
    series: Sequence[Series],
    *,
    chart_id: str = "domains",
    title: str = "Held-out NLL by domain",
    unit: str = "nats per token (lower is better)",
) -> Chart:
    """Horizontal bars: a group per domain, a bar per model, first series on top."""
    labels = distinct_labels(domains)
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": s.name,
            "y": labels,
            "x": list(s.values),
            "marker": {"color": s.color},
            "text": [number(v) for v in s.values],
            "textposition": "outside",
            "cliponaxis": False,
            "hoverinfo": "x+name",
        }
        for s in series
    ]
    layout = base_layout(height=BAR_MARGIN + len(domains) * (len(series) * BAR_HEIGHT + 16))
    # Plotly draws groups from the bottom up; both orders are reversed to read from the top down.
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False}
    layout["xaxis"] |= {"title": axis_title(unit), "rangemode": "tozero"}
    layout |= {"barmode": "group", "bargap": 0.28, "bargroupgap": 0.08, "hovermode": "closest"}
    description = "; ".join(
        f"{label}: " + ", ".join(f"{s.name} {number(s.values[i])}" for s in series) for i, label in enumerate(labels)
    )
    measure = unit.partition(" (")[0]
    return Chart(chart_id, title, f"Bar chart, {measure}. {description}", "", {"data": traces, "layout": layout})


def distinct_labels(names: Sequence[str]) -> list[str]:
    """Shorten names for an axis; two that became equal get a number, or their bars would be stacked."""
    seen: dict[str, int] = {}
    labels = []
    for name in names:
        label = chart_label(name)
        seen[label] = seen.get(label, 0) + 1
        labels.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return labels


def loss_chart(steps: Sequence[dict[str, Any]]) -> Chart | None:
    """The training loss and its parts; None before the first step."""
    parts = [("loss", "total", "@ink"), ("ce", "cross-entropy", "@student"), ("kd", "divergence", "@teacher")]
    if all(step.get("kd") is None for step in steps):
        parts = [("loss", "cross-entropy", "@student")]
    return _curves("loss", "Training loss", "nats per target token", steps, parts)


def validation_chart(evaluations: Sequence[dict[str, Any]], teacher: float | None) -> Chart | None:
    """Validation NLL, macro-average over domains, with thin lines for the domains; None without evaluations."""
    chart = _curves("validation", "Validation NLL", "nats per token", evaluations, [("nll", "average", "@student")])
    if chart is None:
        return None
    steps = [event["step"] for event in evaluations]
    names = list(evaluations[0].get("domains", {}))
    if 1 < len(names) <= MAX_DOMAIN_LINES:
        for name in names:
            values = [event["domains"].get(name, {}).get("nll") for event in evaluations]
            line = {"color": "@faint", "width": 1}
            thin = {
                "type": "scatter",
                "mode": "lines",
                "x": steps,
                "y": values,
                "name": chart_label(name),
                "line": line,
            }
            chart.figure["data"].insert(0, {**thin, "showlegend": False})
    if teacher is not None:
        line = {"color": "@teacher", "width": 2, "dash": "dash"}
        ends = [steps[0], steps[-1]]
        chart.figure["data"].append(
            {"type": "scatter", "mode": "lines", "x": ends, "y": [teacher] * 2, "name": "teacher", "line": line}
        )
    thin_lines = any(trace["line"]["color"] == "@faint" for trace in chart.figure["data"])
    return replace(
        chart,
        note="Thin lines are the domains." if thin_lines else "",
        table=curve_table(
            "Validation NLL in nats per token, by optimizer step.", "Step", _by_domain(evaluations, names)
        ),
    )


def _by_domain(
    evaluations: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[tuple[str, list[float], list[float | None]]]:
    steps = [event["step"] for event in evaluations]
    curves = [(clip(name, MAX_LABEL), [e["domains"].get(name, {}).get("nll") for e in evaluations]) for name in names]
    curves = [("Average", [_value(event, "nll") for event in evaluations]), *curves[:MAX_DOMAIN_LINES]]
    return [(name, steps, values) for name, values in curves]


def gradient_chart(steps: Sequence[dict[str, Any]]) -> Chart | None:
    """Weighted gradient RMS of the divergence over that of cross-entropy; None for SFT."""
    note = (
        "Ratio of the weighted gradients' RMS at the logits. "
        "At 1 both losses pull equally; far below, the teacher hardly counts."
    )
    parts = [("grad_rms_ratio", "ratio", "@student")]
    chart = _curves("gradients", "Pull of the teacher", "KD / CE gradient", steps, parts, note)
    if chart is not None:
        chart.figure["layout"]["yaxis"] |= {"type": "log", "minor": {"showgrid": False}}
    return chart


def teacher_chart(steps: Sequence[dict[str, Any]]) -> Chart | None:
    """The teacher's NLL and entropy on the training tokens; None for SFT."""
    parts = [("teacher_nll", "NLL of the gold answers", "@teacher"), ("teacher_entropy", "entropy", "@before")]
    note = "An NLL far above the entropy means that the teacher is sure of other answers than the gold ones."
    return _curves("teacher", "Teacher on the training tokens", "nats per token", steps, parts, note)


def agreement_chart(steps: Sequence[dict[str, Any]]) -> Chart | None:
    """Share of target tokens where student and teacher have the same most likely token; None for SFT."""
    parts = [("top1_agreement", "top-1 agreement", "@student")]
    chart = _curves("agreement", "Agreement with the teacher", "share of tokens", steps, parts)
    if chart is not None:
        chart.figure["layout"]["yaxis"] |= {"tickformat": ".0%", "rangemode": "normal"}
    return chart


def run_curves(named: Sequence[tuple[str, str, Sequence[dict[str, Any]]]]) -> Chart | None:
    """Validation NLL of several runs, each given as (name, color, evaluations); None without any."""
    traces = [_line(chart_label(name), color, *_thinned(events, "nll")) for name, color, events in named if events]
    if not traces:
        return None
    layout = base_layout()
    layout["xaxis"]["title"] = axis_title("optimizer step")
    layout["yaxis"]["title"] = axis_title("nats per token")
    described = "; ".join(f"{name}: {_fall(events, 'nll')}" for name, _, events in named if events)
    figure = {"data": traces, "layout": layout}
    description = f"Line chart of validation NLL. {described}."
    curves = [(name, *_thinned(events, "nll")) for name, _, events in named if events]
    numbers = curve_table("Validation NLL in nats per token, by optimizer step.", "Step", curves)
    return Chart("curves", "Validation NLL", description, "", figure, numbers)


def _curves(
    chart_id: str,
    title: str,
    unit: str,
    events: Sequence[dict[str, Any]],
    parts: Sequence[tuple[str, str, str]],
    note: str = "",
) -> Chart | None:
    """A line per (key, name, color) that has at least one value; None where none has."""
    present = [(key, name, color) for key, name, color in parts if any(_value(e, key) is not None for e in events)]
    if not present:
        return None
    layout = base_layout()
    layout["xaxis"]["title"] = axis_title("optimizer step")
    layout["yaxis"]["title"] = axis_title(unit)
    traces = [_line(name, color, *_thinned(events, key)) for key, name, color in present]
    described = "; ".join(f"{name} {_fall(events, key)}" for key, name, _ in present)
    bucket = math.ceil(len(events) / MAX_POINTS)
    if bucket > 1:
        note = f"{note} Each point averages {bucket} steps.".strip()
    curves = [(name, *_thinned(events, key)) for key, name, _ in present]
    numbers = curve_table(f"{title}, {unit}, by optimizer step.", "Step", curves)
    return Chart(
        chart_id, title, f"Line chart, {unit}: {described}.", note, {"data": traces, "layout": layout}, numbers
    )


def _line(name: str, color: str, x: list[float], y: list[float]) -> Figure:
    mode = "lines+markers" if len(x) <= 15 else "lines"
    line = {"color": color, "width": 2.2}
    return {"type": "scatter", "mode": mode, "x": x, "y": y, "name": name, "line": line, "marker": {"color": color}}


def _thinned(events: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Points of one curve, averaged in buckets so that a long run does not make a heavy page."""
    points = [(event["step"], value) for event in events if (value := _value(event, key)) is not None]
    size = max(1, math.ceil(len(points) / MAX_POINTS))
    buckets = [points[i : i + size] for i in range(0, len(points), size)]
    return (
        [bucket[-1][0] for bucket in buckets],
        [round(sum(value for _, value in bucket) / len(bucket), 5) for bucket in buckets],
    )


def _value(event: dict[str, Any], key: str) -> float | None:
    value = event.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _fall(events: Sequence[dict[str, Any]], key: str) -> str:
    points = [(event["step"], value) for event in events if (value := _value(event, key)) is not None]
    (first, start), (last, end) = points[0], points[-1]
    return f"from {number(start)} at step {count(first)} to {number(end)} at step {count(last)}"


def axis_title(text: str) -> Figure:
    """The title of an axis in the page's style."""
    return {"text": text, "font": {"size": 12, "color": "@muted"}, "standoff": 8}


def base_layout(height: int = 300) -> Figure:
    """The layout that all charts start from: transparent, in the theme's colors, zoom off, legend on top."""
    axis: Figure = {
        "gridcolor": "@grid",
        "linecolor": "@grid",
        "zeroline": False,
        "tickfont": {"size": 12, "color": "@muted"},
    }
    return {
        "height": height,
        "margin": {"l": 56, "r": 30, "t": 12, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 13, "color": "@ink"},
        "hoverlabel": {"bgcolor": "@card", "bordercolor": "@line", "font": {"color": "@ink"}},
        "hovermode": "x unified",
        "dragmode": False,
        "showlegend": False,
        "legend": {
            "orientation": "h",
            "xref": "container",
            "x": 0,
            "y": 1.0,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "xaxis": {**axis, "fixedrange": True, "automargin": True},
        "yaxis": {**axis, "fixedrange": True, "automargin": True},
    }
