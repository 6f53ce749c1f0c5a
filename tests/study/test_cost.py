"""Costs and budgets by the documented rule, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from stillhouse.errors import RecipeError
from stillhouse.recipe import Recipe
from stillhouse.study.budget import apply_budget
from stillhouse.study.config import StudyBudget
from stillhouse.study.cost import StageTokens, run_flops, student_flops_per_token, teacher_flops_per_token

STUDENT, TEACHER = 10, 100
CACHE = {"path": "t", "source": "cache", "cache": {"dir": "c"}}


def recipe(*objectives: dict[str, Any] | str, teacher: Any = None, budgets: Any = None) -> Recipe:
    stages = []
    for i, objective in enumerate(objectives):
        objective = {"type": objective} if isinstance(objective, str) else objective
        stage: dict[str, Any] = {"name": f"s{i}", "objective": objective}
        if budgets is not None:
            stage["optimisation"] = {"budget": budgets[i]}
        stages.append(stage)
    return Recipe.model_validate(
        {
            "teacher": teacher or {"path": "t"},
            "student": {"path": "s"},
            "data": {"train": [{"path": "d.jsonl"}]},
            "stages": stages,
            "output": {"dir": "o"},
        }
    )


def cost(recipe: Recipe, *tokens: tuple[int, int], training_set: int = 50) -> dict[str, float]:
    by_stage = {f"s{i}": StageTokens(*pair) for i, pair in enumerate(tokens)}
    return run_flops(recipe, by_stage, training_set, student=STUDENT, teacher=TEACHER).to_json()


def test_sft_pays_the_student_alone() -> None:
    # 6 * 10 parameters * 1000 tokens
    assert cost(recipe("sft"), (1000, 0)) == {"student": 60_000, "teacher": 0, "total": 60_000, "preparation": 0}


def test_a_live_teacher_pays_a_forward_pass_of_every_token() -> None:
    # 2 * 100 * 1000 beside 6 * 10 * 1000
    assert cost(recipe("kd"), (1000, 0)) == {
        "student": 60_000,
        "teacher": 200_000,
        "total": 260_000,
        "preparation": 0,
    }


def test_a_cached_teacher_is_listed_apart() -> None:
    # 2 * 100 * 50 tokens of the training set, once, however many are trained
    found = cost(recipe("kd", teacher=CACHE), (1000, 0))
    assert found == {"student": 60_000, "teacher": 0, "total": 60_000, "preparation": 10_000}
    assert cost(recipe("sft", teacher=CACHE), (1000, 0))["preparation"] == 0


def test_a_prepared_stage_pays_for_its_own_rows() -> None:
    two = recipe("kd", "kd", teacher=CACHE)
    rows = {"s0": StageTokens(1000, 0, own_rows=7), "s1": StageTokens(500, 0)}

    def prepared(of: Recipe) -> float:
        return run_flops(of, rows, 50, student=STUDENT, teacher=TEACHER).preparation

    # 2 * 100 * (7 tokens of the first stage's rows + 50 of the recipe's)
    assert prepared(two) == 200 * 57
    # SFT on the recipe's rows needs no target of them; three stages on the same rows share one pass.
    assert prepared(recipe("kd", "sft", teacher=CACHE)) == 200 * 7
    assert cost(recipe("kd", "kd", "kd", teacher=CACHE), (10, 0), (10, 0), (10, 0))["preparation"] == 200 * 50
    # Written answers and captured targets are two passes; a live teacher of the other stage is none.
    assert prepared(recipe("sequence_kd", "kd", teacher=CACHE)) == 200 * 57
    assert prepared(recipe("sequence_kd", "kd")) == 200 * 7


def test_answers_of_the_student_and_of_the_teacher() -> None:
    # 6 * 10 * 1000 + 2 * 10 * 400 for the tokens that the student wrote; the teacher reads all of them
    found = cost(recipe("gkd"), (1000, 400))
    assert (found["student"], found["teacher"]) == (68_000, 200_000)
    written = cost(recipe("sequence_kd"), (1000, 0))
    assert (written["teacher"], written["preparation"]) == (0, 10_000)


def test_a_doremi_proxy_pays_for_two_readings() -> None:
    # (6 + 2 + 2) * 10 * 1000: it scores each step first, and so does its reference; its teacher is only measured
    found = cost(recipe({"type": "doremi_proxy", "reference": "runs/reference"}), (1000, 0))
    assert (found["student"], found["teacher"]) == (100_000, 0)
    assert cost(recipe("ted"), (1000, 0))["teacher"] == 200_000


def test_stages_add_up_and_a_skipped_one_costs_nothing() -> None:
    two = recipe("kd", "sft")
    assert cost(two, (1000, 0), (500, 0))["total"] == 260_000 + 30_000
    assert cost(two, (1000, 0))["total"] == 260_000


def test_a_recipe_without_a_teacher_s_size_costs_none() -> None:
    found = run_flops(recipe("sft"), {"s0": StageTokens(10, 0)}, 5, student=STUDENT, teacher=None)
    assert found.total == 600


def test_prices_of_a_token() -> None:
    gkd = recipe({"type": "gkd", "on_policy_fraction": 0.25})
    # 6 + 2 * 0.25 forward passes' worth
    assert student_flops_per_token(gkd.stages[0], STUDENT) == 65.0
    assert teacher_flops_per_token(gkd, gkd.stages[0], TEACHER) == 200.0
    assert teacher_flops_per_token(gkd, gkd.stages[0], None) == 0.0


def budgets_of(recipe: Recipe, **budget: Any) -> list[dict[str, Any]]:
    found = apply_budget(recipe, StudyBudget(**budget), lambda _: (STUDENT, TEACHER), where="study")
    return [stage.optimisation.budget.model_dump(exclude_none=True) for stage in found.stages]


def test_one_stage_gets_the_whole_budget() -> None:
    assert budgets_of(recipe("kd"), tokens=500) == [{"tokens": 500}]
    assert budgets_of(recipe("kd"), updates=7) == [{"steps": 7}]
    # 26,000 buy 26,000 / 260 tokens beside the teacher, and 26,000 / 60 without
    assert budgets_of(recipe("kd"), flops=26_000) == [{"tokens": 100}]
    assert budgets_of(recipe("sft"), flops=26_000) == [{"tokens": 433}]


def test_stages_share_in_the_proportion_of_their_own_budgets() -> None:
    two = recipe("kd", "sft", budgets=[{"epochs": 3}, {"epochs": 1}])
    assert budgets_of(two, tokens=400) == [{"tokens": 300}, {"tokens": 100}]
    # 3/4 of 26,000 at 260 a token, 1/4 at 60
    assert budgets_of(two, flops=26_000) == [{"tokens": 75}, {"tokens": 108}]


def test_a_budget_that_cannot_be_shared_or_buys_nothing_is_refused() -> None:
    mixed = recipe("kd", "sft", budgets=[{"epochs": 3}, {"steps": 10}])
    with pytest.raises(RecipeError, match=r"budget: the stages share it.*different units"):
        budgets_of(mixed, tokens=100)
    both = recipe("kd", "sft", budgets=[{"epochs": 3, "steps": 5}, {"epochs": 1}])
    with pytest.raises(RecipeError, match="give each stage one limit"):
        budgets_of(both, tokens=100)
    with pytest.raises(RecipeError, match=r"stages.0 \(s0\) buys no tokens"):
        budgets_of(recipe("kd"), flops=100)
