"""Methods by name: each makes a valid recipe of the one it is given, and keeps what belongs to it."""

from __future__ import annotations

import copy
from collections.abc import Callable
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


def uncounted() -> int:
    pytest.fail("the data is counted although the recipe tells its steps")


def with_method(name: str, base: Recipe, count_steps: Callable[[], int] = uncounted) -> Recipe:
    data = copy.deepcopy(base.model_dump(mode="json"))
    for field, value in method_overrides([name], base, count_steps)[name].items():
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


def test_ted_differs_from_kd_by_what_it_adds() -> None:
    kd, ted = (with_method(name, recipe()).stages[0].objective.model_dump() for name in ("kd", "ted"))
    shared = ("divergence", "mixing", "temperature", "scale_t2")
    assert {name: ted[name] for name in shared} == {name: kd[name] for name in shared}
    # A stage of its own kind keeps everything, and the way back takes no layers along.
    own = recipe(objective={"type": "ted", "filter_steps": 7, "temperature": 3.0})
    assert with_method("ted", own).stages[0].objective == own.stages[0].objective
    back = with_method("kd", own).stages[0].objective.model_dump()
    assert (back["type"], back["temperature"], "filter_steps" in back) == ("kd", 3.0, False)


def test_a_budget_in_epochs_is_counted_once_on_the_data() -> None:
    epochs = recipe(optimisation={"budget": {"epochs": 1}})
    counts: list[int] = []

    def count() -> int:
        counts.append(70)
        return 70

    found = method_overrides(["sft", "kd", "ddk", "equal"], epochs, count)
    assert counts == [70]
    assert found["ddk"]["stages.*.mixture"] == {"type": "ddk", "interval_steps": 7}
    method_overrides(["sft", "kd"], epochs, uncounted)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"--methods kdd: unknown; known are sft, .*Did you mean 'kd'\?"):
        method_overrides(["kdd"], recipe(), uncounted)
    with pytest.raises(RecipeError, match="kd stands twice"):
        method_overrides(["kd", "kd"], recipe(), uncounted)
