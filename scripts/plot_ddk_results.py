"""Draw docs/images/ddk_arms.svg, ddk_mixture.svg and ddk_ablation.svg from what benchmarks/ddk_arms.py wrote.

python scripts/plot_ddk_results.py docs/data/ddk_arms.json [FOLDER]

A picture whose part of the figures is missing is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _svg import COLOURS, FAINT, INK, Plot, page, ticks

TARGET = Path(__file__).parents[1] / "docs" / "images"
Json = Mapping[str, Any]
Curve = tuple[str, Sequence[tuple[float, float]]]


def arms_picture(report: Json) -> str | None:
    """Macro-average perplexity ratio of each arm with its interval, and its paired difference to KD."""
    arms = report.get("arms")
    if not arms:
        return None
    found = {name: arm["macro_ratio"] for name, arm in arms.items()}
    differences = {name: arm["minus_kd"] for name, arm in arms.items() if arm.get("minus_kd")}
    panels = [(found, 130, "Perplexity over the teacher's, mean of domains (1 is level)", False)]
    if differences:
        panels.append((differences, 530, "Less that of KD, paired by seed (left of 0 is better)", True))
    height = 70 + 26 * len(arms)
    plots = []
    for values, left, title, zero in panels:
        ends = [e for v in values.values() for e in (v["low"], v["high"], v["mean"]) if e is not None] + [0.0] * zero
        marks = ticks(min(ends), max(ends))
        plot = Plot((left, 34, 300, 26 * len(arms)), (marks[0], marks[-1]), (len(arms) - 0.5, -0.5))
        plot.text(left - (120 if not zero else 0), 18, title)
        for mark in marks:
            plot.line([(mark, -0.5), (mark, len(arms) - 0.5)], INK if zero and mark == 0 else FAINT, 1)
            plot.text(plot.at(mark, 0)[0], height - 18, f"{mark:g}", "middle")
        for row, name in enumerate(arms):
            if not zero:
                plot.text(left - 10, plot.at(0, row)[1] + 4, name, "end")
            if name not in values:
                continue
            value, colour = values[name], COLOURS[row % len(COLOURS)]
            if value["low"] is not None:
                plot.line([(value["low"], row), (value["high"], row)], colour, 2)
            plot.dot(value["mean"], row, colour)
        plots.append(plot)
    return page(860, height, "DDK beside its baselines: perplexity ratio to the teacher", plots)


def mixture_picture(report: Json) -> str | None:
    """Weights and ratios of DDK's first seed over the steps (the paper's Figure 3)."""
    events = (report.get("arms", {}).get("ddk") or {}).get("mixture")
    if not events:
        return None
    drawn = [event for event in events[0] if event.get("interval") is not None]
    names = list(drawn[0]["domains"])
    length = drawn[1]["step"] - drawn[0]["step"] if len(drawn) > 1 else 1
    end = drawn[-1]["step"] + length
    weights: list[Curve] = []
    ratios: list[Curve] = []
    for name in names:
        rows = [(event["step"], event["domains"][name]) for event in drawn]
        steps = [point for step, row in rows for point in ((step, row["weight"]), (step + length, row["weight"]))]
        weights.append((name, steps))
        ratios.append((name, [(step, row["ratio"]) for step, row in rows if row["ratio"] is not None]))
    plots = []
    for place, (curves, form, title) in enumerate(
        ((weights, ".0%", "Share of the tokens drawn"), (ratios, ".2g", "Student's perplexity over the teacher's"))
    ):
        values = [y for _, points in curves for _, y in points]
        marks = ticks(min(values), max(values))
        plot = Plot((50 + place * 400, 40, 320, 230), (0, end), (marks[0], marks[-1]))
        plot.y_axis(marks, form, title)
        for number, (_, points) in enumerate(curves):
            plot.line(points, COLOURS[number % len(COLOURS)])
        for mark in ticks(0, end, 4)[:-1]:
            plot.text(plot.at(mark, marks[0])[0], 288, f"{mark:g}", "middle")
        plot.text(plot.left + 160, 306, "optimizer step", "middle")
        plots.append(plot)
    for number, name in enumerate(names):
        x = 50 + (number % 8) * 108
        plots[0].parts.append(f'<rect x="{x}" y="322" width="12" height="12" fill="{COLOURS[number % len(COLOURS)]}"/>')
        plots[0].text(x + 17, 332, name)
    return page(830, 346, "Weights and discrepancy ratios of DDK by domain", plots)


def ablation_picture(report: Json) -> str | None:
    """Macro-average ratio over the interval K and over alpha, with intervals."""
    found = (report.get("ablation") or {}).get("arms")
    if not found:
        return None
    own = report.get("arms", {}).get("ddk")
    panels: list[tuple[str, dict[float, Json]]] = []
    for prefix, title, default in (("K", "Steps of an interval, K", report.get("K")), ("alpha", "alpha", 0.5)):
        values = {
            float(name[len(prefix) :]): arm["macro_ratio"] for name, arm in found.items() if name.startswith(prefix)
        }
        if own and default is not None and values:
            values.setdefault(float(default), own["macro_ratio"])
        if values:
            panels.append((title, dict(sorted(values.items()))))
    ends = [e for _, vs in panels for v in vs.values() for e in (v["low"], v["high"], v["mean"]) if e is not None]
    marks = ticks(min(ends), max(ends))
    plots = []
    for place, (title, values) in enumerate(panels):
        # Settings stand at equal distances: K doubles from one to the next.
        plot = Plot((60 + place * 380, 40, 300, 210), (-0.5, len(values) - 0.5), (marks[0], marks[-1]))
        plot.y_axis(marks, ".4g", "Perplexity over the teacher's, mean of domains")
        colour = COLOURS[place]
        plot.line([(i, v["mean"]) for i, v in enumerate(values.values())], colour, 1.5)
        for i, (setting, value) in enumerate(values.items()):
            if value["low"] is not None:
                plot.line([(i, value["low"]), (i, value["high"])], colour, 1.5)
            plot.dot(i, value["mean"], colour)
            plot.text(plot.at(i, marks[0])[0], 268, f"{setting:g}", "middle")
        plot.text(plot.left + 150, 286, title, "middle")
        plots.append(plot)
    return page(790, 300, "DDK by interval length and by alpha", plots)


def main(arguments: Sequence[str]) -> None:
    """Write the pictures whose figures are there."""
    report = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    folder = Path(arguments[1]) if len(arguments) > 1 else TARGET
    drawn = {
        "ddk_arms": arms_picture(report),
        "ddk_mixture": mixture_picture(report),
        "ddk_ablation": ablation_picture(report),
    }
    for name, picture in drawn.items():
        if picture is None:
            sys.stderr.write(f"{name}.svg: no figures for it\n")
            continue
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
