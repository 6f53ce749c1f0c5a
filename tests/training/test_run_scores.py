"""A run's scores: in result.json for teacher, before and after, and none where the recipe says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import DataError
from stillhouse.recipe import Recipe
from stillhouse.training.run import train

MakeRecipe = Callable[..., Recipe]
GENERATION = {"rows": 2, "samples": 1, "max_new_tokens": 4}


@pytest.fixture
def choice_data(chat_jsonl: Path, tmp_path: Path) -> dict[str, Any]:
    """Training rows as ever, and test rows with choices, references and an answer that is no choice."""
    path = tmp_path / "test.jsonl"

    def row(prompt: str, gold: str, **more: Any) -> str:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": gold}]
        return json.dumps({"messages": turns, "domain": "choice", **more}) + "\n"

    lines = [row(f"Is {n} even?", "Yes", answer="Yes", choices=["Yes", "No"]) for n in range(3)]
    lines += [row("Greet Ada.", "Hello", references=["Hello", "Hi"]), row("What?", "7", answer="7", choices=["a", "b"])]
    path.write_text("".join(lines))
    return {"path": str(path)}


def test_every_model_gets_every_score(make_recipe: MakeRecipe, choice_data: dict[str, Any], tmp_path: Path) -> None:
    evaluation = {"test": [choice_data], "generation": GENERATION}
    outcome = train(make_recipe(evaluation=evaluation, objective={"type": "sft"}))
    assert outcome.result is not None
    for model in ("teacher", "student_before", "student_after"):
        found = outcome.result["evaluation"][model]
        assert {name: score["n"] for name, score in found["scores"].items()} == {
            "multiple_choice": 3,
            "multiple_choice_norm": 3,
            "exact_match": 2,
            "rouge_l": 1,
            "chrf": 1,
            "token_ece": 5,
            "multiple_choice_ece": 3,
        }
        assert found["scores"]["exact_match"]["score"] == found["exact_match"]["score"]
    assert any("1 rows are left out of a score" in warning for warning in outcome.result["warnings"])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["evaluation"] == outcome.result["evaluation"]


def test_questions_that_nobody_answered_are_scored_by_their_instructions(
    make_recipe: MakeRecipe, choice_data: dict[str, Any], tmp_path: Path
) -> None:
    check = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    path = tmp_path / "ifeval.jsonl"
    path.write_text(
        json.dumps({"messages": [{"role": "user", "content": "Greet Bo."}], "domain": "other", **check}) + "\n"
    )
    evaluation = {"test": [choice_data, {"path": str(path)}], "generation": GENERATION}
    outcome = train(make_recipe(evaluation=evaluation, objective={"type": "sft"}))
    assert outcome.result is not None
    for model in ("teacher", "student_before", "student_after"):
        found = outcome.result["evaluation"][model]
        assert found["scores"]["ifeval_prompt_strict"]["n"] == 1
        assert set(found["domains"]) == {"choice"}


def test_names_choose_and_nothing_is_possible(make_recipe: MakeRecipe, choice_data: dict[str, Any]) -> None:
    evaluation = {"test": [choice_data], "generation": GENERATION, "metrics": ["chrf"], "multiple_choice_rows": 1}
    outcome = train(make_recipe(evaluation=evaluation, objective={"type": "sft"}))
    assert outcome.result is not None
    after = outcome.result["evaluation"]["student_after"]
    assert set(after["scores"]) == {"chrf"}
    assert after["exact_match"] is None
    none = train(make_recipe("none", evaluation={**evaluation, "metrics": []}, objective={"type": "sft"}))
    assert none.result is not None
    assert none.result["evaluation"]["student_after"]["scores"] == {}


def test_a_named_metric_without_rows_stops_before_training(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the metric multiple_choice was asked for, and no row has"):
        train(make_recipe(evaluation={"metrics": ["multiple_choice"]}))
    assert not (tmp_path / "run" / "result.json").exists()
