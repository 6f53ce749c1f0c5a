"""Gains over the baseline: by data size, by the teacher's strength, by domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stillhouse.report.charts import Chart, Figure, axis_title, base_layout, distinct_labels
from stillhouse.report.study_arms import ArmKey, Arms, ArmStyle, group_title, key_of
from stillhouse.report.study_marks import (
    MAX_ARMS,
    MAX_GROUPS,
    NATS,
    Json,
    at_rows,
    categories,
    log_rows,
    points,
    size_text,
    some_sizes,
    zero_line,
)
from stillhouse.report.table import interval, table
from stillhouse.report.text import number

MAX_DOMAINS = 20
DODGE = 0.012
"""Neighboring arms stand apart by this share of the axis, so that their intervals can be told apart."""


def gain_charts(analysis: Json, arms: Arms) -> list[Chart]:
    """What each method gains over the baseline, by data size or, without sizes, one line per arm."""
    charts = []
    for place, group in enumerate(arms.groups[:MAX_GROUPS]):
        found = [g for g in analysis["gains"] if key_of(g["arm"]) in arms.in_group(group)]
        if found:
            draw = _gains_by_size if any(gain["rows"] is not None for gain in found) else _gains_by_arm
            charts.append(draw(f"gains-{place}", group, found, arms))
    return charts


def _gains_by_size(chart_id: str, group: Any, gains: Sequence[Json], arms: Arms) -> Chart:
    by_arm: dict[ArmKey, list[Json]] = {}
    for gain in gains:
        if gain["rows"] is not None:
            by_arm.setdefault(key_of(gain["arm"]), []).append(gain)
    every = [gain["rows"] for gain in gains if gain["rows"] is not None]
    layout = log_rows(base_layout(380), every)
    layout["yaxis"]["title"] = axis_title(NATS)
    layout["shapes"] = [zero_line("y")]
    width = math.log(max(every) / min(every)) or 1.0
    traces = []
    for place, (key, found) in enumerate(list(by_arm.items())[:MAX_ARMS]):
        shift = math.exp((place - (min(len(by_arm), MAX_ARMS) - 1) / 2) * DODGE * width)
        x = [gain["rows"] * shift for gain in found]
        traces.append(
            points(arms.style(key), x, [g["difference"] for g in found], at_rows(found), "lines+markers", thin=True)
        )
    title = group_title(f"Gain over {arms.baseline_name} by data size", group)
    return _gain_chart(chart_id, title, gains, arms, {"data": traces, "layout": layout})


def _gains_by_arm(chart_id: str, group: Any, gains: Sequence[Json], arms: Arms) -> Chart:
    shown = gains[:MAX_DOMAINS]
    layout = base_layout(120 + 34 * len(shown))
    categories(layout)
    layout["xaxis"]["title"] = axis_title(NATS)
    layout |= {"showlegend": False, "shapes": [zero_line("x")]}
    traces = []
    labels = distinct_labels([arms.name(gain["arm"]) for gain in shown])
    for label, gain in zip(labels, shown, strict=True):
        style = arms.style(key_of(gain["arm"]))
        traces.append(points(style, [gain["difference"]], [label], [""], "markers", across=True))
    title = group_title(f"Gain over {arms.baseline_name}", group)
    return _gain_chart(chart_id, title, gains, arms, {"data": traces, "layout": layout})


def _gain_chart(chart_id: str, title: str, gains: Sequence[Json], arms: Arms, figure: Figure) -> Chart:
    rows = [
        (
            arms.name(g["arm"]),
            size_text(g),
            interval(g["difference"]),
            _verdict(g["difference"]),
            str(g["difference"]["n"]),
        )
        for g in gains
    ]
    numbers = table(
        f"Gain over {arms.baseline_name} in {NATS}, paired by seed, with 95 % Student-t interval; above 0 the method is better.",
        ["Arm", "Rows", "Gain (95 % interval)", "Reading", "Seeds"],
        rows,
    )
    described = "; ".join(f"{name} at {rows_} rows {gain}: {verdict}" for name, rows_, gain, verdict, _ in rows)
    note = "Above zero the method is better. A bar that crosses zero cannot tell."
    return Chart(chart_id, title, f"Chart of gains with intervals: {described}.", note, figure, numbers)


def _verdict(difference: Json) -> str:
    if difference["low"] is None:
        return "one seed"
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "cannot tell"


def ladder_charts(analysis: Json, arms: Arms) -> list[Chart]:
    """Gain against the teacher's own strength, where a study has two teachers or more."""
    charts = []
    for place, group in enumerate(arms.groups[:MAX_GROUPS]):
        found = [
            g for g in analysis["gains"] if key_of(g["arm"]) in arms.in_group(group) and g["teacher_nll"] is not None
        ]
        if len({gain["arm"]["teacher"] for gain in found}) > 1:
            charts.append(
                _ladder(
                    f"ladder-{place}",
                    group_title(f"Gain over {arms.baseline_name} by the teacher's strength", group),
                    found,
                    arms,
                )
            )
    return charts


def _ladder(chart_id: str, title: str, gains: Sequence[Json], arms: Arms) -> Chart:
    layout = base_layout(360)
    layout["xaxis"] |= {"title": axis_title("the teacher's own NLL (stronger to the right)"), "autorange": "reversed"}
    layout["yaxis"]["title"] = axis_title(NATS)
    layout |= {"shapes": [zero_line("y")], "hovermode": "closest"}
    sizes = some_sizes(gains)
    ladders: dict[tuple[str | None, str | None], list[Json]] = {}
    for gain in sorted(gains, key=lambda g: -float(g["teacher_nll"])):
        if gain["size"] in sizes:
            ladders.setdefault((gain["arm"]["method"], gain["size"]), []).append(gain)
    traces = []
    for (method, size), found in list(ladders.items())[: 2 * MAX_ARMS]:
        look = arms.style(key_of(found[0]["arm"]))
        at = sizes.index(size)
        name = f"{method}, {size_text(found[0])} rows" if found[0]["rows"] is not None else str(method)
        style = ArmStyle(name, look.color, ("solid", "dash", "dot")[at % 3], ("circle", "square", "diamond")[at % 3])
        where = [f"{arms.name(g['arm'])}, {size_text(g)} rows, teacher at {number(g['teacher_nll'], 3)}" for g in found]
        x, y = [g["teacher_nll"] for g in found], [g["difference"] for g in found]
        traces.append(points(style, x, y, where, "lines+markers", thin=True, line_dash=style.dash))
    ranked = sorted(gains, key=lambda g: (g["arm"]["method"], g["rows"] or 0.0, -float(g["teacher_nll"])))
    numbers = table(
        f"Gain over {arms.baseline_name} in {NATS} beside the NLL of the teacher itself (lower is stronger).",
        ["Arm", "Rows", "Teacher's NLL", "Gain (95 % interval)", "Gap recovered"],
        [
            (
                arms.name(g["arm"]),
                size_text(g),
                number(g["teacher_nll"], 3),
                interval(g["difference"]),
                interval(g["gap_recovered_interval"], 2),
            )
            for g in ranked
        ],
    )
    described = "; ".join(f"{row[0]} at {row[1]} rows, teacher {row[2]}: {row[3]}" for row in numbers.rows)
    note = "Each line is one method at one data size, from its weakest teacher to its strongest."
    figure = {"data": traces, "layout": layout}
    return Chart(chart_id, title, f"Line chart of gain over teacher strength: {described}.", note, figure, numbers)


def domain_charts(analysis: Json, arms: Arms) -> list[Chart]:
    """Gains by domain at the smallest and at the largest data size."""
    charts = []
    sizes = list(dict.fromkeys(g["size"] for g in sorted(analysis["gains"], key=lambda g: g["rows"] or 0.0)))
    chosen = sizes if len(sizes) < 2 else [sizes[0], sizes[-1]]
    for group_place, group in enumerate(arms.groups[:MAX_GROUPS]):
        keys = [key for key in arms.in_group(group) if key[0] != arms.baseline][:MAX_ARMS]
        for place, size in enumerate(chosen):
            found = [d for d in analysis["domain_gains"] if d["size"] == size and key_of(d["arm"]) in keys]
            if len({d["domain"] for d in found}) > 1:
                words = "" if size is None else f" with the {'least' if place == 0 else 'most'} data ({size})"
                title = group_title(f"Gain over {arms.baseline_name} by domain{words}", group)
                charts.append(_domains(f"domains-{group_place}-{place}", title, found, arms))
    return charts


def _domains(chart_id: str, title: str, gains: Sequence[Json], arms: Arms) -> Chart:
    total: dict[str, float] = {}
    for gain in gains:
        total[gain["domain"]] = total.get(gain["domain"], 0.0) + gain["difference"]["mean"]
    domains = sorted(total, key=lambda domain: -total[domain])[:MAX_DOMAINS]
    labels = dict(zip(domains, distinct_labels(domains), strict=True))
    keys = list(dict.fromkeys(key_of(gain["arm"]) for gain in gains))
    layout = base_layout(110 + len(domains) * (14 * len(keys) + 16))
    categories(layout)
    layout["xaxis"]["title"] = axis_title(NATS)
    layout |= {"shapes": [zero_line("x")], "scattermode": "group", "scattergap": 0.35}
    traces: list[Figure] = []
    for key in keys:
        by_domain = {g["domain"]: g["difference"] for g in gains if key_of(g["arm"]) == key}
        here = [domain for domain in domains if domain in by_domain]
        y = [labels[domain] for domain in here]
        found = [by_domain[domain] for domain in here]
        trace = points(arms.style(key), found, y, y, "markers", across=True)
        traces.append(trace | {"offsetgroup": str(len(traces)), "orientation": "h"})
    rows = [(g["domain"], arms.name(g["arm"]), interval(g["difference"]), _verdict(g["difference"])) for g in gains]
    numbers = table(
        f"Gain over {arms.baseline_name} by domain in {NATS}, paired by seed, with 95 % Student-t interval.",
        ["Domain", "Arm", "Gain (95 % interval)", "Reading"],
        sorted(rows, key=lambda row: domains.index(row[0]) if row[0] in domains else MAX_DOMAINS),
        num_words=2,
    )
    described = "; ".join(f"{row[0]}, {row[1]}: {row[2]}" for row in numbers.rows)
    note = "" if len(total) <= MAX_DOMAINS else f"The {MAX_DOMAINS} domains with the largest gains of {len(total)}."
    figure = {"data": traces, "layout": layout}
    return Chart(chart_id, title, f"Dot chart of gains by domain: {described}.", note, figure, numbers)
