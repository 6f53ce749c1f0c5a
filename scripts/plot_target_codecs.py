"""Draw docs/images/target_codecs.svg from the JSON lines of benchmarks/target_codecs.py: fidelity against size.

python scripts/plot_target_codecs.py docs/data/target_codecs.json [more.json]

Each file holds the last line of one call; sections may come from several calls. Left: error of the summed
gradient against dense KD. Right, where there are students: their held-out NLL against dense KD's.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "docs" / "images" / "target_codecs.svg"
FAMILIES = {
    "topk-": ("top-k, renormalised", "#5b7c99"),
    "topk_ghost-": ("top-k with a ghost bucket", "#c9a26b"),
    "sampled-": ("random sampling", "#b5501b"),
}
PANEL, HEIGHT, LEFT, TOP, BOTTOM = 430, 380, 64, 54, 84
SIZES = (10, 20, 50, 100, 200, 500)

Point = tuple[str, float, float, float | None]
"""Name, bytes a token, value, and the standard deviation where there is one."""


def colour(name: str) -> str:
    """That of the codec's family."""
    return next(shade for prefix, (_, shade) in FAMILIES.items() if name.startswith(prefix))


def short(name: str) -> str:
    """The label beside a point: what differs within a family."""
    _, number, rest = name.split("-", 2)
    if name.startswith("sampled"):
        return number if rest == "systematic" else f"{number} {rest}"
    return number if rest == "8bit" else f"{number}, {rest}"


def ticks(lowest: float, highest: float) -> list[float]:
    """Four to seven round numbers that cover the range."""
    power = 10.0 ** math.floor(math.log10((highest - lowest) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if (highest - lowest) / (power * factor) <= 6)
    first = math.floor(lowest / step)
    return [round(step * (first + i), 10) for i in range(math.ceil(highest / step) - first + 1)]


def panel(place: int, title: str, unit: str, points: Sequence[Point], marks: dict[str, float]) -> list[str]:
    """One scatter plot over bytes a token (logarithmic), with DistillKit's sizes as lines."""
    start = place * PANEL + LEFT
    right, bottom = (place + 1) * PANEL - 16, HEIGHT - BOTTOM
    values = [value + sign * (spread or 0) for _, _, value, spread in points for sign in (-1, 1)]
    lines = ticks(min(0.0, *values), max(*values, 1e-9))

    def x(size: float) -> float:
        share = math.log(size / SIZES[0]) / math.log(SIZES[-1] / SIZES[0])
        return start + (right - start) * share

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (value - lines[0]) / (lines[-1] - lines[0])

    parts = [f'<text x="{start}" y="{TOP - 14}" font-size="13" fill="#222222">{escape(title)}</text>']
    for line in lines:
        parts.append(
            f'<line x1="{start}" x2="{right}" y1="{y(line):.1f}" y2="{y(line):.1f}" stroke="#e4e4e4"/>'
            f'<text x="{start - 6}" y="{y(line) + 4:.1f}" text-anchor="end" fill="#444444">{line:g}{unit}</text>'
        )
    for tick in SIZES:
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}" stroke="#f0f0f0"/>'
            f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle" fill="#444444">{tick}</text>'
        )
    parts.append(
        f'<text x="{(start + right) / 2:.0f}" y="{bottom + 34}" text-anchor="middle" fill="#222222">bytes a token on disk</text>'
    )
    for name, size in marks.items():
        parts.append(
            f'<line x1="{x(size):.1f}" x2="{x(size):.1f}" y1="{TOP}" y2="{bottom}" stroke="#999999" stroke-dasharray="4 4"/>'
            f'<text x="{x(size) - 4:.1f}" y="{TOP + 4}" text-anchor="end" fill="#777777" '
            f'transform="rotate(-90 {x(size) - 4:.1f} {TOP + 4})">{escape(name)}</text>'
        )
    for name, size, value, spread in points:
        if spread:
            parts.append(
                f'<line x1="{x(size):.1f}" x2="{x(size):.1f}" y1="{y(value - spread):.1f}" y2="{y(value + spread):.1f}" '
                f'stroke="{colour(name)}"/>'
            )
        parts.append(
            f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="4.5" fill="{colour(name)}"><title>{escape(name)}: '
            f"{size:.1f} bytes, {value:.3g}{unit}</title></circle>"
            f'<text x="{x(size) + 7:.1f}" y="{y(value) + 4:.1f}" fill="#333333">{escape(short(name))}</text>'
        )
    return parts


def chart(data: dict[str, Any]) -> str:
    """Return the SVG. ``data`` is the union of the benchmark's lines."""
    marks = {row["codec"]: row["bytes_per_token"] for row in data.get("rows", []) if row.get("computed_from_layout")}
    errors: list[Point] = [
        (row["codec"], row["bytes_per_token"], 100 * row["batch"], None)
        for row in data.get("rows", [])
        # Other value widths lie on the points of 8 bits; the table has them.
        if "batch" in row and not row["codec"].endswith(("-6bit", "-12bit"))
    ]
    students: list[Point] = [
        (row["arm"], row["bytes_per_token"], 100 * row["over_dense"], 100 * (row["over_dense_sd"] or 0.0))
        for row in data.get("students", [])
        if row["bytes_per_token"] is not None
    ]
    panels = [
        ("Error of a batch's gradient against dense KD", "%", errors),
        ("Held-out NLL of the student against dense KD's", "%", students),
    ]
    drawn = [(title, unit, points) for title, unit, points in panels if points]
    width = PANEL * len(drawn)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img" font-family="sans-serif" '
        f'font-size="11"><title>Fidelity of teacher targets against their size</title>',
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for place, (title, unit, points) in enumerate(drawn):
        parts += panel(place, title, unit, points, marks)
    for place, (label, shade) in enumerate(FAMILIES.values()):
        parts.append(
            f'<circle cx="{LEFT + 6 + place * 180}" cy="{HEIGHT - 20}" r="5" fill="{shade}"/>'
            f'<text x="{LEFT + 18 + place * 180}" y="{HEIGHT - 16}" fill="#222222">{escape(label)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def union(paths: Sequence[str]) -> dict[str, Any]:
    """Join the sections of several calls; a later one wins. Each file is one JSON object, or ends with one."""
    joined: dict[str, Any] = {}
    for path in paths:
        text = Path(path).read_text(encoding="utf-8").strip()
        try:
            joined |= json.loads(text)
        except json.JSONDecodeError:
            joined |= json.loads(text.splitlines()[-1])
    return joined


if __name__ == "__main__":
    TARGET.write_text(chart(union(sys.argv[1:])), encoding="utf-8")
