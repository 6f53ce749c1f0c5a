"""What a capture prints where nobody watches a bar, and what comes after synthesis."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from stillhouse.cli.cache import PlainCapture
from stillhouse.cli.synthesize import next_step
from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.synthesis.run import ROWS
from stillhouse.targets.capture import CaptureProgress


def test_lines_come_at_intervals_and_at_the_end() -> None:
    text = io.StringIO()
    plain = PlainCapture(Console(file=text, width=200), seconds=1000.0)
    for done in (10, 20, 40):
        plain.tell(CaptureProgress(done, 40, done * 10, 400, done, 0, done / 2))
    assert text.getvalue().splitlines() == [
        "[capture] 10 of 40 documents  20 tok/s  0:00:15 left",
        "[capture] 40 of 40 documents  20 tok/s  0:00:00 left",
    ]


def next_after_synthesis(**teacher: Any) -> str:
    recipe = recipe_from_mapping(
        {
            "teacher": {"path": "t", **teacher},
            "student": {"path": "s"},
            "data": {"train": [{"path": f"made/{ROWS}"}], "validation_fraction": 0.2},
            "stages": [{"objective": {"type": "kd"}}],
            "synthesis": {"dir": "made", "count": 3, "format": {"type": "regex", "pattern": ".*"}},
            "output": {"dir": "out"},
        }
    )
    return next_step(recipe, Path("r.yaml"))


def test_synthetic_rows_are_captured_before_a_cached_teacher_is_learned_from() -> None:
    assert next_after_synthesis() == "next: stillhouse train r.yaml"
    cached = next_after_synthesis(source="cache", cache={"dir": "c"})
    assert cached == "next: stillhouse capture r.yaml, then stillhouse train r.yaml"
