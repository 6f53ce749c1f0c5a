"""Draw docs/images/chat_distillation.svg from the JSON line of benchmarks/chat_distillation.py.

python scripts/plot_chat_results.py docs/data/chat_distillation.json
"""

from __future__ import annotations

import json
import statistics
import sys
from html import escape
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "docs" / "images" / "chat_distillation.svg"
METHODS = {
    "sft": ("SFT", "#5b7c99"),
    "kd-plain": ("KD, teacher as it is", "#c9a26b"),
    "kd-tuned": ("KD, fine-tuned teacher", "#b5501b"),
}
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 330, 60, 70, 50
BAR, GAP = 56, 12


def chart(data: dict[str, Any]) -> str:
    """Return the SVG: a group of bars a data size, the teachers and the start as lines."""
    sizes, seeds, domains = data["options"]["sizes"], data["options"]["seeds"], len(data["domains"]) - 1
    top = float(data["student_before_nll"]) * 1.08
    lines = {
        "student before": data["student_before_nll"],
        "teacher as it is": data["teacher_nll"],
        "fine-tuned teacher": data["tuned_teacher_nll"],
    }

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" '
        f'font-size="12"><title>Held-out NLL of a 24-layer student by method and data size</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="14" fill="#222222">Held-out NLL, nats per content token, '
        f"average over {domains} chat domains (lower is better)</text>",
    ]
    for name, value in lines.items():
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 160}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#777777" '
            f'stroke-dasharray="4 4"/><text x="{WIDTH - 154}" y="{y(value) + 4:.1f}" fill="#444444">'
            f"{escape(name)} {value:.2f}</text>"
        )
    for group, rows in enumerate(sizes):
        start = LEFT + 30 + group * (len(METHODS) * (BAR + GAP) + 60)
        for place, (method, (_, colour)) in enumerate(METHODS.items()):
            values = [data["nll"][f"{method}-{rows}-{seed}"] for seed in seeds]
            mean, x = statistics.fmean(values), start + place * (BAR + GAP)
            parts.append(
                f'<rect x="{x}" y="{y(mean):.1f}" width="{BAR}" height="{y(0) - y(mean):.1f}" fill="{colour}"/>'
                f'<line x1="{x + BAR / 2}" x2="{x + BAR / 2}" y1="{y(max(values)):.1f}" y2="{y(min(values)):.1f}" '
                f'stroke="#111111"/><text x="{x + BAR / 2}" y="{y(0) - 8:.1f}" text-anchor="middle" fill="#ffffff">{mean:.2f}</text>'
            )
        middle = start + (len(METHODS) * (BAR + GAP) - GAP) / 2
        parts.append(
            f'<text x="{middle}" y="{y(0) + 18:.1f}" text-anchor="middle" fill="#222222">{rows * domains} training rows</text>'
        )
    for place, (label, colour) in enumerate(METHODS.values()):
        x = LEFT + place * 190
        parts.append(
            f'<rect x="{x}" y="{HEIGHT - 26}" width="12" height="12" fill="{colour}"/><text x="{x + 18}" y="{HEIGHT - 16}" fill="#222222">{escape(label)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    TARGET.write_text(chart(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), encoding="utf-8")
