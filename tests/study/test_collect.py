"""What a study reads from a finished run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stillhouse.recipe import Recipe
from stillhouse.study.collect import run_result


def evaluation(nll: float, exact: float | None, **scores: float) -> dict[str, Any]:
    return {
        "domains": {"all": {"nll": nll}},
        "exact_match": None if exact is None else {"score": exact},
        "scores": {name: {"score": value} for name, value in scores.items()},
    }


def run_folder(folder: Path, *, teacher: dict[str, Any] | None) -> Path:
    """A run of two stages with a cached teacher: `first` on 70 tokens of its own, `second` on the recipe's 500."""
    stages = [
        {"name": "first", "objective": {"type": "kd"}, "data": {"train": [{"path": "own.jsonl"}]}},
        {"name": "second", "objective": {"type": "sft"}},
    ]
    recipe = Recipe.model_validate(
        {
            "teacher": {"path": "t", "source": "cache", "cache": {"dir": "c"}},
            "student": {"path": "s"},
            "data": {"train": [{"path": "d.jsonl"}]},
            "stages": stages,
            "output": {"dir": "o"},
        }
    )
    result = {
        "recipe": recipe.model_dump(mode="json"),
        "headline": {"teacher": 1.0, "student_before": 4.0, "student_after": 2.0, "gap_closed": 2 / 3},
        "evaluation": {"teacher": teacher, "student_after": evaluation(2.0, 0.25, accuracy=0.5)},
        "training": {
            **{"steps": 4, "tokens": 300, "targets": 90, "seconds": 1.0, "tokens_per_second": 300.0},
            "stages": [{"name": "first", "tokens": 100}, {"name": "second", "tokens": 200}],
        },
        "data": {"train": {"documents": 9, "tokens": 500}, "train of first": {"documents": 2, "tokens": 70}},
        "parameters": {"teacher": 100, "student": 10},
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_a_captured_teacher_is_counted_on_the_rows_of_the_stage_that_needs_it(tmp_path: Path) -> None:
    flops = run_result(run_folder(tmp_path, teacher=None))["flops"]
    # 2 * 100 * 70: the 500 tokens of the recipe's rows are only fine-tuned on.
    assert flops == {"student": 6 * 10 * 300, "teacher": 0, "total": 6 * 10 * 300, "preparation": 14_000}


def test_the_teacher_s_scores_stand_beside_the_student_s(tmp_path: Path) -> None:
    found = run_result(run_folder(tmp_path, teacher=evaluation(1.0, 0.75, accuracy=0.875)))
    assert (found["exact_match"], found["scores"]) == (0.25, {"exact_match": 0.25, "accuracy": 0.5})
    assert found["teacher_scores"] == {"exact_match": 0.75, "accuracy": 0.875}
    assert run_result(run_folder(tmp_path, teacher=None))["teacher_scores"] == {}
