"""The shipped study of DDK's arms is the shipped recipes of DDK's arms, whatever these become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stillhouse.recipe import Recipe
from stillhouse.recipe_io import load_recipe
from stillhouse.study.config import StudyConfig
from stillhouse.study.grid import plan_study

RECIPES = Path(__file__).parents[2] / "recipes"
STUDY = RECIPES / "studies" / "ddk_arms.yaml"
FILES = {
    "prepare/doremi_reference-seed0": "cpt_doremi_1_reference",
    "prepare/doremi_proxy-seed0": "cpt_doremi_2_proxy",
    "runs/cpt_doremi-seed0": "cpt_doremi_3_final",
    **{f"runs/{arm}-seed0": arm for arm in ("cpt", "kd", "reverse_kl", "ted", "ddk", "ddk_equal", "ddk_unsmoothed")},
}
"""Run of the study to file of the recipe."""


def without_place(recipe: Recipe, names: dict[str, str]) -> Any:
    """The recipe less its output, with the directories of the runs before it called by one name."""

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return names.get(value, value) if isinstance(value, str) else value

    data = recipe.model_dump(mode="json")
    del data["output"]["dir"], data["seed"]
    return renamed(data)


@pytest.fixture(scope="module")
def planned() -> dict[str, Recipe]:
    config = StudyConfig.from_yaml(STUDY).model_copy(update={"seeds": (0,)})
    return {name: run.recipe for name, run in plan_study(config, STUDY.parent).runs.items()}


def test_the_study_has_every_recipe_and_no_other(planned: dict[str, Recipe]) -> None:
    assert set(planned) == set(FILES)
    assert set(FILES.values()) == {path.stem for path in (RECIPES / "ddk").glob("*.yaml")}


@pytest.mark.parametrize("run", FILES)
def test_each_arm_is_the_recipe_of_its_file(planned: dict[str, Recipe], run: str) -> None:
    names = {f"runs/ddk_arms/{name}": f"runs/ddk/{file}" for name, file in FILES.items()}
    expected = without_place(load_recipe(RECIPES / "ddk" / f"{FILES[run]}.yaml"), {})
    assert without_place(planned[run], names) == expected
