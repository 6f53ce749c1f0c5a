"""Run directories with made-up but realistic numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_run import AFTER, DOMAINS, STEPS, environment, evaluation_line, recipe, result, step_line

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run directory; ``change`` may alter the result before it is written."""

    def make(
        name: str = "kd",
        kind: str = "kd",
        *,
        domains: tuple[str, ...] = DOMAINS,
        teacher: bool = True,
        finished: bool = True,
        change: Callable[[dict[str, Any]], None] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(kind, teacher)), encoding="utf-8")
        (folder / "environment.json").write_text(json.dumps(environment()), encoding="utf-8")
        lines = [evaluation_line(0, domains, AFTER[kind])]
        for step in range(1, (STEPS if finished else 20) + 1):
            lines.append(step_line(step, kind == "kd"))
            if step % 8 == 0 or step == STEPS:
                lines.append(evaluation_line(step, domains, AFTER[kind]))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        if finished:
            value = result(kind, domains, teacher)
            if change is not None:
                change(value)
            (folder / "result.json").write_text(json.dumps(value), encoding="utf-8")
        return folder

    return make
