"""Recipe files: what is wrong is said with its field, and overrides reach any depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.errors import RecipeError
from stillhouse.recipe import KDObjective
from stillhouse.recipe_io import apply_override, dump_recipe, load_recipe, parse_yaml, recipe_from_mapping


def write(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def message(data: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping(data, where="r.yaml")
    return str(caught.value)


def with_objective(data: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**data, "stages": [{"objective": {"type": "kd", **fields}}]}


def test_an_unknown_key_names_its_field_and_the_nearest_one(recipe_data: dict[str, Any]) -> None:
    text = message(with_objective(recipe_data, temprature=4))
    assert text == "r.yaml: stages.0.objective.temprature: unknown key. Did you mean 'temperature'?"


def test_a_value_out_of_bounds_is_shown(recipe_data: dict[str, Any]) -> None:
    text = message(with_objective(recipe_data, divergence={"type": "jsd", "beta": 3}))
    assert text == "r.yaml: stages.0.objective.divergence.beta=3: input should be less than or equal to 1"


def test_an_unknown_variant_lists_those_there_are(recipe_data: dict[str, Any]) -> None:
    text = message(with_objective(recipe_data, divergence={"type": "foward_kl"}))
    assert "stages.0.objective.divergence.type=foward_kl: expected one of forward_kl, reverse_kl" in text
    assert "Did you mean 'forward_kl'?" in text


def test_a_missing_variant_lists_those_there_are(recipe_data: dict[str, Any]) -> None:
    assert (
        message({**recipe_data, "stages": [{"objective": {}}]})
        == "r.yaml: stages.0.objective: needs a `type`; one of sft, kd, gkd, sequence_kd, ted, doremi_proxy, cross_tokenizer"
    )


def test_every_wrong_field_has_a_line(recipe_data: dict[str, Any]) -> None:
    lines = message({**recipe_data, "seed": -1, "sed": 3}).splitlines()
    assert lines == [
        "r.yaml: seed=-1: input should be greater than or equal to 0",
        "r.yaml: sed: unknown key. Did you mean 'seed'?",
    ]


def test_a_missing_field_is_named(recipe_data: dict[str, Any]) -> None:
    assert "output: missing" in message({k: v for k, v in recipe_data.items() if k != "output"})


def test_overrides_reach_mappings_and_lists(tmp_path: Path, recipe_data: dict[str, Any]) -> None:
    path = write(tmp_path, recipe_data)
    recipe = load_recipe(
        path,
        ["stages.0.optimisation.learning_rate=1e-4", "stages.0.objective.divergence={type: jsd, beta: 0.1}", "seed=7"],
    )
    assert recipe.stages[0].optimisation.learning_rate == 1e-4
    objective = recipe.stages[0].objective
    assert isinstance(objective, KDObjective)
    assert objective.divergence.model_dump() == {"type": "jsd", "beta": 0.1}
    assert recipe.seed == 7


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "expected key.sub=value"),
        ("stages.1.name=x", "not an index of a list of 1"),
        ("seed.deep=1", "plain value"),
        ("seed=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_says_why(override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        apply_override({"seed": 1, "stages": [{}]}, override)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2", "'a' stands twice"),
        ("a: [1\nb: 2", r"f\.yaml:2"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_yaml_is_strict_and_safe(text: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        parse_yaml(text, "f.yaml")


def test_scientific_notation_is_a_number() -> None:
    assert parse_yaml("x: 1e-4\ny: 2E5\nz: 4.0e-4", "f") == {"x": 1e-4, "y": 2e5, "z": 4e-4}


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="expected `key: value` lines"):
        load_recipe(write(tmp_path, "- 1"))
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(binary)


def test_the_resolved_recipe_reads_back(tmp_path: Path, recipe_data: dict[str, Any]) -> None:
    recipe = recipe_from_mapping(recipe_data)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
