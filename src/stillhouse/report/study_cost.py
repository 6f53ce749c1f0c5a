"""Cost against quality: FLOPs and wall time of every cell, and the front that no other cell beats."""

from __future__ import annotations

from stillhouse.report.charts import Chart, Figure, axis_title, base_layout
from stillhouse.report.study_arms import Arms, key_of
from stillhouse.report.study_marks import MAX_ARMS, NATS, Json, log_cost, points, size_prefix
from stillhouse.report.table import interval, table
from stillhouse.report.text import duration, flops, share


def cost_charts(analysis: Json, arms: Arms) -> list[Chart]:
    """Quality against FLOPs and against wall time, with the front that nobody beats."""
    kinds = (
        ("flops", "on_flops_front", "Quality against FLOPs", "FLOPs of one run, teacher included"),
        ("seconds", "on_seconds_front", "Quality against time", "time of one run"),
    )
    drawn = (_cost(key, front, title, axis, analysis, arms) for key, front, title, axis in kinds)
    return [chart for chart in drawn if chart is not None]


def _cost(key: str, front: str, title: str, axis: str, analysis: Json, arms: Arms) -> Chart | None:
    distinct = arms.distinct[:MAX_ARMS]
    cells = [c for c in analysis["costs"] if key_of(c["arm"]) in distinct and c[key]]
    if len(cells) < 2:
        return None
    show = flops if key == "flops" else _seconds
    layout = log_cost(base_layout(360), axis, [float(cell[key]) for cell in cells], show)
    layout["yaxis"]["title"] = axis_title(NATS)
    edge = sorted((p[key], p["nll"]["mean"]) for p in cells if p[front])
    line = {"color": "@muted", "width": 1.5, "shape": "hv"}
    traces: list[Figure] = [
        {"type": "scatter", "mode": "lines", "name": "nobody is cheaper and better", "line": line}
        | {"x": [x for x, _ in edge], "y": [y for _, y in edge], "hoverinfo": "skip"}
    ]
    for arm in distinct:
        found = [p for p in cells if key_of(p["arm"]) == arm]
        if found:
            where = [f"{size_prefix(p['size'])}{show(p[key])}" for p in found]
            x, y = [p[key] for p in found], [p["nll"] for p in found]
            traces.append(points(arms.style(arm), x, y, where, "markers"))
    numbers = table(
        "Cost of one run (mean over seeds) and its held-out NLL.",
        ["Arm", "Size", "FLOPs", "Teacher's share", "Time", "NLL (95 % interval)", "On the front"],
        [
            (
                arms.name(p["arm"]),
                p["size"] or "–",
                flops(p["flops"]),
                share(p["teacher_share"]),
                duration(p["seconds"]),
                interval(p["nll"]),
                "yes" if p[front] else "no",
            )
            for p in sorted(cells, key=lambda p: float(p[key]))
        ],
    )
    best = ", ".join(f"{arms.name(p['arm'])} {p['size'] or ''}".strip() for p in cells if p[front])
    description = f"Scatter chart of held-out NLL over {axis}, {len(cells)} cells. On the front: {best}."
    note = "NLL on held-out rows; down and to the left is better. The line joins the cells that no other beats in both."
    return Chart(f"cost-{key}", title, description, note, {"data": traces, "layout": layout}, numbers)


def _seconds(value: float) -> str:
    return f"{value:,.3g} s" if value < 1000 else f"{value:,.0f} s"
