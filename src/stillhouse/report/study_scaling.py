"""Quality over data size: a study's learning curves with their fits and the band of the crossover."""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.report.charts import Chart, Figure, axis_title, base_layout
from stillhouse.report.study_arms import ArmKey, Arms, ArmStyle, group_title, key_of
from stillhouse.report.study_marks import (
    MAX_ARMS,
    MAX_GROUPS,
    NATS,
    Json,
    at_rows,
    from_to,
    log_rows,
    points,
    rounded,
    sized,
)
from stillhouse.report.table import interval, table
from stillhouse.report.text import chart_label, count

CURVE_POINTS = 60


def scaling_charts(analysis: Json, arms: Arms) -> list[Chart]:
    """Held-out NLL over training rows for every arm, with fits and the band of the crossover."""
    charts = []
    for place, group in enumerate(arms.groups[:MAX_GROUPS]):
        keys = [key for key in arms.in_group(group) if sized(arms.cells(key))][:MAX_ARMS]
        if any(len(sized(arms.cells(key))) > 1 for key in keys):
            charts.append(
                _scaling(f"scaling-{place}", group_title("Held-out NLL by data size", group), keys, analysis, arms)
            )
    return charts


def _scaling(chart_id: str, title: str, keys: Sequence[ArmKey], analysis: Json, arms: Arms) -> Chart:
    rows = [cell["rows"] for key in keys for cell in sized(arms.cells(key))]
    layout = log_rows(base_layout(380), rows)
    layout["yaxis"]["title"] = axis_title(NATS)
    crossings = [c for c in analysis["crossovers"] if key_of(c["arm"]) in keys and c["metric"] == "nll"]
    ends = (min(rows), max([*rows, *(c["crossover"]["size"] or 0.0 for c in crossings)]))
    fits = {key_of(c["arm"]): c["fit"] for c in analysis["curves"] if c["metric"] == "nll"}
    traces: list[Figure] = []
    for key in keys:
        style, cells = arms.style(key), sized(arms.cells(key))
        fit = fits.get(key)
        if fit is not None:
            traces += _fit_lines(style, fit, cells, ends)
        mode = "markers" if fit is not None else "lines+markers"
        traces.append(points(style, [c["rows"] for c in cells], [c["nll"] for c in cells], at_rows(cells), mode))
    bands, notes = _bands(crossings, arms)
    layout["shapes"] = bands
    note = "Lower is better. Points are means over seeds with 95 % intervals" + (
        "; lines are fitted curves. " if fits else ". "
    )
    columns = ["Arm", "Rows", "NLL (95 % interval)", "Seeds"]
    cells_of = [(key, cell) for key in keys for cell in sized(arms.cells(key))]
    numbers = table(
        "Held-out NLL in nats per token, mean over seeds with Student-t interval.",
        columns,
        [(arms.style(k).name, count(c["rows"]), interval(c["nll"]), str(len(c["seeds"]))) for k, c in cells_of],
    )
    described = "; ".join(f"{arms.style(k).name} {from_to(sized(arms.cells(k)))}" for k in keys)
    description = f"Line chart of held-out NLL over training rows: {described}. {notes}"
    return Chart(chart_id, title, description, (note + notes).strip(), {"data": traces, "layout": layout}, numbers)


def _fit_lines(style: ArmStyle, fit: Json, cells: Sequence[Json], ends: tuple[float, float]) -> list[Figure]:
    """The fitted curve, solid (or in its teacher's dash) within the sizes that were run and faint beyond them."""
    lines = []
    first, last = cells[0]["rows"], cells[-1]["rows"]
    for low, high, inside in ((first, last, True), (last, ends[1], False)):
        if high <= low * 1.001:
            continue
        step = (high / low) ** (1 / (CURVE_POINTS - 1))
        x = [low * step**i for i in range(CURVE_POINTS)]
        y = [round(fit["floor"] + fit["amplitude"] * v ** -fit["alpha"], 5) for v in x]
        line = {"color": style.color, "width": 2 if inside else 1.2, "dash": style.dash if inside else "dot"}
        lines.append(
            {"type": "scatter", "mode": "lines", "x": [round(v, 2) for v in x], "y": y, "line": line}
            | {"hoverinfo": "skip", "showlegend": False, "name": chart_label(style.name)}
        )
    return lines


def _bands(crossings: Sequence[Json], arms: Arms) -> tuple[list[Figure], str]:
    """Shapes at every crossover and over the range of its resamples, and what they are in words."""
    shapes: list[Figure] = []
    notes = []
    for found in crossings:
        cross, style = found["crossover"], arms.style(key_of(found["arm"]))
        if cross["size"] is None:
            continue
        whole = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
        words = f"{style.name} stops beating {arms.baseline_name} at about {count(rounded(cross['size']))} rows"
        if cross["quantiles"] is not None:
            low, _, high = cross["quantiles"]
            band = {"type": "rect", "x0": low, "x1": high, "fillcolor": style.color, "opacity": 0.13}
            shapes.append(whole | band | {"line": {"width": 0}})
            words += f" ({cross['interval_kind']} {count(rounded(low))} to {count(rounded(high))}"
            words += f"; {cross['fraction_without_root']:.0%} of resamples never cross)".replace("%", " %")
        if cross["extrapolated"]:
            words += ", which is beyond the sizes that were run"
        line = {"type": "line", "x0": cross["size"], "x1": cross["size"]}
        shapes.append(whole | line | {"line": {"color": style.color, "width": 1.5, "dash": "dot"}})
        notes.append(f"{words}.")
    return shapes, " ".join(notes)
