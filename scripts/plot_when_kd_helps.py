"""Draw docs/images/when_kd_helps.svg from what benchmarks/when_kd_helps.py wrote: NLL and gain over data and teacher.

python scripts/plot_when_kd_helps.py docs/data/when_kd_helps.json [FILE]
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _svg import COLOURS, INK, Plot, page, ticks

TARGET = Path(__file__).parents[1] / "docs" / "images" / "when_kd_helps.svg"
Json = Mapping[str, Any]
Points = dict[str, dict[float, Json]]
"""By line: rows to an interval."""


def name_of(arm: Json) -> str:
    """Words for an arm."""
    words = {"sft": "SFT", "kd": "KD", "two_stage": "two stages"}.get(arm["method"], str(arm["method"]))
    return words if arm["method"] == "sft" or arm["teacher"] is None else f"{words}, teacher of {arm['teacher']}"


def points(entries: Sequence[Json], field: str) -> Points:
    """Lines of a panel, in the order of the study."""
    found: Points = {}
    for entry in entries:
        if entry["metric"] == "nll" if "metric" in entry else True:
            found.setdefault(name_of(entry["arm"]), {})[entry["rows"]] = entry[field]
    return found


def panel(left: float, lines: Points, colours: Mapping[str, str], title: str, *, zero: bool) -> Plot:
    """One panel over training rows, logarithmic."""
    rows = sorted({x for line in lines.values() for x in line})
    ends = [
        e for line in lines.values() for v in line.values() for e in (v["low"], v["high"], v["mean"]) if e is not None
    ]
    marks = ticks(min([*ends, 0.0] if zero else ends), max(ends))
    first, last = math.log(rows[0]), math.log(rows[-1])
    plot = Plot((left, 40, 320, 240), (first - 0.15, last + 0.15), (marks[0], marks[-1]))
    plot.y_axis(marks, ".2f" if not zero else "+.2f", title)
    if zero:
        plot.line([(first - 0.15, 0), (last + 0.15, 0)], INK, 1)
    for place, (name, line) in enumerate(lines.items()):
        colour = colours[name]
        shift = 0.03 * (place - (len(lines) - 1) / 2)
        plot.line([(math.log(x) + shift, v["mean"]) for x, v in sorted(line.items())], colour)
        for x, value in line.items():
            if value["low"] is not None:
                plot.line([(math.log(x) + shift, value["low"]), (math.log(x) + shift, value["high"])], colour, 1.2)
            plot.dot(math.log(x) + shift, value["mean"], colour)
    for x in rows:
        plot.text(plot.at(math.log(x), marks[0])[0], 298, f"{x:g}", "middle")
    plot.text(left + 160, 316, "human rows", "middle")
    return plot


def picture(analysis: Json) -> str:
    """Left the NLL of every arm, right its gain over SFT."""
    cells = [cell for cell in analysis["cells"] if cell["rows"] is not None]
    losses, gains = points(cells, "nll"), points(analysis["gains"], "difference")
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(losses)}
    plots = [
        panel(60, losses, colours, "Held-out NLL, nats/token (lower is better)", zero=False),
        panel(470, gains, colours, "NLL below SFT's, paired by seed (above 0 is better)", zero=True),
    ]
    for number, (name, colour) in enumerate(colours.items()):
        x = 60 + number * 195
        plots[0].parts.append(f'<rect x="{x}" y="334" width="12" height="12" fill="{colour}"/>')
        plots[0].text(x + 17, 344, name)
    return page(max(820, 60 + 195 * len(colours)), 358, "SFT and KD by data size and teacher", plots)


def main(arguments: Sequence[str]) -> None:
    """Write the picture."""
    report = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    target = Path(arguments[1]) if len(arguments) > 1 else TARGET
    target.write_text(picture(report["analysis"]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
