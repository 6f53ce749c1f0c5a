"""The schema: defaults, bounds, and combinations that make no sense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.recipe import KDObjective, Recipe

Build = Callable[..., Recipe]


@pytest.fixture
def recipe(recipe_data: dict[str, Any]) -> Build:
    return lambda **changes: Recipe.model_validate({**recipe_data, **changes})


def test_defaults_are_forward_kl_mixed_half_and_half(recipe: Build) -> None:
    objective = recipe().stages[0].objective
    assert isinstance(objective, KDObjective)
    assert objective.divergence.type == "forward_kl"
    assert objective.weights == (0.5, 0.5)
    assert objective.scale_t2


@pytest.mark.parametrize(
    ("mixing", "weights"),
    [
        ({"type": "additive", "gamma": 0.2}, (1.0, 0.2)),
        ({"type": "convex", "kd_weight": 0.25}, (0.75, 0.25)),
        ({"type": "convex", "kd_weight": 1.0}, (0.0, 1.0)),
    ],
)
def test_both_mixing_conventions(recipe: Build, mixing: dict[str, Any], weights: tuple[float, float]) -> None:
    built = recipe(stages=[{"objective": {"type": "kd", "mixing": mixing}}])
    assert built.stages[0].objective.weights == weights


def test_sft_has_no_divergence_and_needs_no_teacher(recipe: Build) -> None:
    built = recipe(teacher=None, stages=[{"objective": {"type": "sft"}}])
    assert built.stages[0].objective.weights == (1.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"teacher": None}, r"stages\.0\.objective\.type=kd needs a teacher"),
        (
            {
                "teacher": None,
                "student": {"type": "pruned", "depth": {"layers": 2}},
                "stages": [{"objective": {"type": "sft"}}],
            },
            r"student\.type=pruned prunes the teacher",
        ),
        ({"student": {"type": "pruned"}}, "at least one of depth, width, vocabulary"),
        ({"student": {"type": "pruned", "width": {}}}, "at least one of hidden_size"),
        ({"parallel": {"cpu_offload": True}}, r"parallel\.cpu_offload=true needs parallel\.strategy=fsdp"),
        (
            {"stages": [{"objective": {"type": "sft"}, "optimisation": {"budget": {}}}]},
            "at least one of epochs, steps, tokens",
        ),
        ({"stages": [{"objective": {"type": "kd", "temperature": 0}}]}, "temperature"),
        ({"stages": [{"objective": {"type": "kd", "divergence": {"type": "jsd", "beta": 1.5}}}]}, "beta"),
        ({"stages": [{"objective": {"type": "kd", "divergence": {"type": "forward_kl", "beta": 0.5}}}]}, "beta"),
        ({"stages": []}, "stages"),
        ({"data": {"train": []}}, "data.train"),
    ],
)
def test_what_makes_no_sense_is_refused(recipe: Build, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        recipe(**changes)


def test_a_resolved_recipe_reads_back_as_itself(recipe: Build) -> None:
    built = recipe(student={"type": "pruned", "depth": {"layers": 2}})
    assert Recipe.model_validate(built.model_dump(mode="json")) == built
