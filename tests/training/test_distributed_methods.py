"""TED and DoReMi's proxy on two processes follow one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_distributed import assert_follows, events, launch

from stillhouse.recipe import Recipe
from stillhouse.training.doremi import WEIGHTS_NAME
from stillhouse.training.run import train

MakeRecipe = Callable[..., Recipe]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_proxy_finds_the_same_weights(
    make_recipe: MakeRecipe, tmp_path: Path, tiny_teacher_dir: Path, strategy: str
) -> None:
    settings = {
        "objective": {"type": "doremi_proxy", "reference": str(tiny_teacher_dir)},
        "teacher": None,
        "optimisation": {"learning_rate": 1e-3},
    }
    one = train(make_recipe("one", **settings)).directory
    launch(make_recipe("two", **settings, parallel={"strategy": strategy}), tmp_path, processes=2)
    assert_follows(one, tmp_path / "two")
    a, b = (json.loads((run / WEIGHTS_NAME).read_text())["weights"] for run in (one, tmp_path / "two"))
    assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.slow
def test_filters_and_student_are_the_same(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    settings = {
        "objective": {"type": "ted", "filter_steps": 3, "mse_weight": 100.0},
        "optimisation": {"learning_rate": 1e-3},
    }
    one = train(make_recipe("one", **settings)).directory
    launch(make_recipe("two", **settings), tmp_path, processes=2)
    assert_follows(one, tmp_path / "two")
    for left, right in zip(events(one, "step"), events(tmp_path / "two", "step"), strict=True):
        assert left["mse"] == pytest.approx(right["mse"], rel=2e-4)
