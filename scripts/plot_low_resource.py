"""Draw docs/images/low_resource.svg from what benchmarks/low_resource_arms.py wrote: every arm beside human-only SFT.

python scripts/plot_low_resource.py docs/data/low_resource.json [FILE]
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _svg import COLOURS, FAINT, INK, Plot, page, ticks

TARGET = Path(__file__).parents[1] / "docs" / "images" / "low_resource.svg"
BASELINE = "human_sft"
GROUPS = {"human": 0, "synthetic": 1, "two": 2, "reversed": 3, "mixed": 4}
"""Colour of an arm by the first word of its name."""
LABELS, WIDTH, ROW = 170, 190, 17
Json = Mapping[str, Any]


def panel(place: tuple[float, float], arms: Mapping[str, Json], field: str, title: str) -> Plot:
    """One task: a line for each arm, from the low to the high end of its interval."""
    found = {name: arm[field] for name, arm in arms.items() if arm[field] is not None}
    ends = [x for v in found.values() for x in (v["mean"], v["low"], v["high"]) if x is not None]
    reach = _reach(found)
    marks = ticks(max(min([*ends, 0.0]), -reach), min(max([*ends, 0.0]), reach), 3)
    low, high = marks[0], marks[-1]
    plot = Plot((*place, WIDTH, ROW * len(arms)), (low, high), (-len(arms), 0.0))
    for mark in marks:
        plot.line([(mark, 0), (mark, -len(arms))], INK if mark == 0 else FAINT, 1)
        plot.text(plot.at(mark, 0)[0], place[1] + ROW * len(arms) + 14, f"{mark:+.3g}", "middle")
    plot.text(place[0], place[1] - 8, title)
    for row, name in enumerate(arms):
        value = found.get(name)
        if value is None:
            continue
        colour, y = COLOURS[GROUPS[name.split("_")[0]]], -row - 0.5
        if value["low"] is not None:
            ends_shown = [(min(max(x, low), high), y) for x in (value["low"], value["high"])]
            plot.line(ends_shown, colour, 1.5)
        plot.dot(min(max(value["mean"], low), high), y, colour)
    return plot


def _reach(found: Mapping[str, Json]) -> float:
    """How far the axis goes: the farthest mean and a half more; a wider interval is cut there."""
    return 1.5 * max((abs(v["mean"]) for v in found.values()), default=1.0) or 1.0


def picture(report: Json) -> str:
    """NLL above, score below, a column for each task."""
    tasks = {name: task for name, task in report["tasks"].items() if task["arms"]}
    names = [name for name in next(iter(tasks.values()))["arms"] if name != BASELINE]
    height = ROW * len(names)
    plots = []
    for column, (task, found) in enumerate(tasks.items()):
        arms = {name: found["arms"][name] for name in names if name in found["arms"]}
        left = LABELS + column * (WIDTH + 34)
        for field, top, words in (
            ("nll", 40.0, "NLL (left is better)"),
            ("score", 40.0 + height + 64, f"{found['score']} (right is better)"),
        ):
            plots.append(panel((left, top), arms, f"{field}_minus_{BASELINE}", f"{task}: {words}"))
            if column == 0:
                for row, name in enumerate(names):
                    plots[-1].text(LABELS - 10, top + (row + 0.5) * ROW + 4, name, "end")
    title = "Every arm minus human-only SFT, mean and 95 % interval of the differences paired by seed"
    width = math.ceil(LABELS + len(tasks) * (WIDTH + 34))
    plots[0].text(10, 2 * height + 144, title)
    return page(width, 2 * height + 156, title, plots)


def main(arguments: Sequence[str]) -> None:
    """Write the picture."""
    report = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    target = Path(arguments[1]) if len(arguments) > 1 else TARGET
    target.write_text(picture(report), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
