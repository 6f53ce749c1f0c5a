"""Methods by name: each makes a valid recipe of the one it is given, and keeps what belongs to it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from stillhouse.errors import RecipeError
from stillhouse.recipe import Recipe
from stillhouse.recipe_io import set_field
from stillhouse.study.methods import METHODS, method_overrides

KD = {"type": "kd", "divergence": {"type": "jsd", "beta": 0.5}, "temperature": 2.0}


def recipe(**stage: Any) -> Recipe:
    first = {"objective": KD, "optimisation": {"budget": {"steps": 100}}, **stage}
    return Recipe.model_validate(
        {
            "teacher": {"path": "t"},
            "student": {"path": "s"},
            "data": {"train": [{"path": "d.jsonl"}]},
            "stages": [first],
            "output": {"dir": "o"},
        }
    )


def with_method(name: str, base: Recipe) -> Recipe:
    data = copy.deepcopy(base.model_dump(mode="json"))
    for field, value in method_overrides([name], base)[name].items():
        set_field(data, field, value, where=name)
    return Recipe.model_validate(data)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_valid_recipe(name: str) -> None:
    made = with_method(name, recipe())
    assert made.model_copy(update={"stages": ()}) == recipe().model_copy(update={"stages": ()})
    assert METHODS[name].description


def test_kd_methods_keep_the_recipe_s_objective() -> None:
    for name in ("kd", "ddk", "ddk_unsmoothed", "equal", "proportional"):
        assert with_method(name, recipe()).stages[0].objective == recipe().stages[0].objective
    reverse = with_method("reverse_kl", recipe()).stages[0].objective.model_dump()
    assert (reverse["divergence"], reverse["temperature"]) == ({"type": "reverse_kl"}, 2.0)
    assert with_method("sft", recipe()).stages[0].objective.type == "sft"
    assert with_method("gkd", recipe()).stages[0].objective.type == "gkd"


def test_mixtures_take_the_recipe_s_interval_or_a_tenth_of_its_steps() -> None:
    assert with_method("ddk", recipe()).stages[0].mixture.interval_steps == 10
    drawn = recipe(mixture={"type": "proportional", "interval_steps": 25})
    for name in ("ddk", "ddk_unsmoothed", "equal", "proportional", "kd", "sft"):
        assert with_method(name, drawn).stages[0].mixture.interval_steps == 25
    own = recipe(mixture={"type": "ddk", "interval_steps": 5, "alpha": 0.9})
    assert with_method("ddk", own).stages[0].mixture == own.stages[0].mixture
    assert with_method("kd", own).stages[0].mixture.model_dump() == {"type": "proportional", "interval_steps": None}
    # 20,000 tokens in steps of 1,000: 20 steps
    tokens = {"budget": {"tokens": 20_000}, "batch_tokens": 1000}
    assert with_method("equal", recipe(optimisation=tokens)).stages[0].mixture.interval_steps == 2


def test_wrong_names_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"--methods kdd: unknown; known are sft, .*Did you mean 'kd'\?"):
        method_overrides(["kdd"], recipe())
    with pytest.raises(RecipeError, match="kd stands twice"):
        method_overrides(["kd", "kd"], recipe())
    epochs = recipe(optimisation={"budget": {"epochs": 1}})
    with pytest.raises(RecipeError, match="--methods ddk: the recipe says neither how long its intervals"):
        method_overrides(["ddk"], epochs)
