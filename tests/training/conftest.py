"""A tiny run: random student and teacher of one tokenizer, 31 chat rows, float32, no compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.recipe import Recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements are shared between runs of a machine, not between tests."""
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make_recipe(tiny_model_dir: Path, tiny_teacher_dir: Path, chat_jsonl: Path, tmp_path: Path) -> MakeRecipe:
    """Build a recipe of six steps; keyword arguments replace fields of its one stage, or give several; ``top`` those of the recipe."""

    def build(
        name: str = "run",
        *,
        objective: dict[str, Any] | None = None,
        optimisation: dict[str, Any] | None = None,
        stages: list[dict[str, Any]] | None = None,
        **top: Any,
    ) -> Recipe:
        common = {
            "budget": {"steps": 6},
            "learning_rate": 1e-2,
            "batch_tokens": 128,
            "micro_batch_tokens": 64,
            "precision": "float32",
            "compile_head": False,
            **(optimisation or {}),
        }
        chosen = stages or [{"objective": objective or {"type": "kd"}}]
        return Recipe.model_validate(
            {
                "teacher": {"path": str(tiny_teacher_dir)},
                "student": {"path": str(tiny_model_dir)},
                "data": {"train": [{"path": str(chat_jsonl)}], "validation_fraction": 0.2, "max_seq_len": 64},
                "stages": [{**s, "optimisation": {**common, **s.get("optimisation", {})}} for s in chosen],
                "evaluation": {"every_steps": 3, "generation": {"rows": 0, "samples": 1, "max_new_tokens": 4}},
                "output": {"dir": str(tmp_path / name)},
                **top,
            }
        )

    return build
