"""The same cost for every run of a study, as budgets of its stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stillhouse.errors import RecipeError
from stillhouse.recipe import Budget, Recipe
from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.study.config import StudyBudget
from stillhouse.study.cost import student_flops_per_token, teacher_flops_per_token

Sizes = Callable[[Recipe], tuple[int, int | None]]
"""Parameters of the student and of the teacher that a recipe names."""


def apply_budget(recipe: Recipe, budget: StudyBudget, sizes: Sizes | None, *, where: str) -> Recipe:
    """Return the recipe with stage budgets that spend ``budget`` in all.

    Each stage gets its share in the proportion of the budgets that the recipe gave the stages. In FLOPs
    a stage's share buys as many tokens as it pays for by the rule of ``cost``: a stage with its teacher
    beside it trains on fewer. Learning-rate schedules follow the new budgets.

    Raises RecipeError when several stages give no common unit, or a share buys nothing.
    """
    shares = _shares(recipe, where)
    data = recipe.model_dump(mode="json")
    for i, (stage, share) in enumerate(zip(recipe.stages, shares, strict=True)):
        given: dict[str, Any]
        if budget.updates is not None:
            given = {"steps": round(budget.updates * share)}
        elif budget.tokens is not None:
            given = {"tokens": round(budget.tokens * share)}
        else:
            assert budget.flops is not None
            assert sizes is not None, "a budget in FLOPs needs the sizes of the models"
            student, teacher = sizes(recipe)
            price = student_flops_per_token(stage, student) + teacher_flops_per_token(recipe, stage, teacher)
            given = {"tokens": int(budget.flops * share / price)}
        unit, amount = next(iter(given.items()))
        if amount < 1:
            raise RecipeError(
                f"{where}: budget: the share of stages.{i} ({stage.name}) buys no {unit}; raise the budget"
            )
        data["stages"][i]["optimisation"]["budget"] = given
    return recipe_from_mapping(data, where=where)


def _shares(recipe: Recipe, where: str) -> list[float]:
    if len(recipe.stages) == 1:
        return [1.0]
    budgets = [stage.optimisation.budget for stage in recipe.stages]
    for unit in Budget.model_fields:
        amounts = [getattr(budget, unit) for budget in budgets]
        if all(amount is not None for amount in amounts) and all(_limits(budget) == 1 for budget in budgets):
            return [amount / sum(amounts) for amount in amounts]
    raise RecipeError(
        f"{where}: budget: the stages share it in the proportion of their own budgets, which are in different units; "
        "give each stage one limit, all in epochs, steps or tokens"
    )


def _limits(budget: Budget) -> int:
    return sum(value is not None for value in budget.model_dump().values())
