"""The run directory: nothing foreign is touched, nothing is half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import OutputError, RecipeError
from stillhouse.recipe import Recipe
from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.run_directory import RunDirectory, read_json, write_json_atomic, write_text_atomic


@pytest.fixture
def recipe(recipe_data: dict[str, Any]) -> Recipe:
    return recipe_from_mapping(recipe_data)


@pytest.fixture
def changed(recipe_data: dict[str, Any]) -> Recipe:
    return recipe_from_mapping({**recipe_data, "seed": 5})


def test_a_new_run_writes_its_recipe(tmp_path: Path, recipe: Recipe) -> None:
    run = RunDirectory.open(recipe, tmp_path / "run", overwrite=False)
    assert run.has_run
    assert not run.is_done


def test_the_same_recipe_resumes_and_another_is_refused_with_the_field(
    tmp_path: Path, recipe: Recipe, changed: Recipe
) -> None:
    RunDirectory.open(recipe, tmp_path / "run", overwrite=False)
    RunDirectory.open(recipe, tmp_path / "run", overwrite=False)
    with pytest.raises(RecipeError, match="different: seed"):
        RunDirectory.open(changed, tmp_path / "run", overwrite=False)


def test_a_finished_run_is_replaced_only_when_asked(tmp_path: Path, recipe: Recipe, changed: Recipe) -> None:
    run = RunDirectory.open(recipe, tmp_path / "run", overwrite=False)
    write_json_atomic(run / "result.json", {})
    write_text_atomic(run / "notes.txt", "mine")
    with pytest.raises(OutputError, match="--overwrite"):
        RunDirectory.open(recipe, tmp_path / "run", overwrite=False)
    again = RunDirectory.open(changed, tmp_path / "run", overwrite=True)
    assert not again.is_done
    assert (again / "notes.txt").read_text() == "mine"


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="other files"):
        RunDirectory.open(recipe, tmp_path, overwrite=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="this is a file"):
        RunDirectory.check(recipe, tmp_path / "run", overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_refused_before_any_work(tmp_path: Path, recipe: Recipe) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="read-only"):
        RunDirectory.check(recipe, tmp_path / "a" / "run", overwrite=False)


def test_a_full_disk_is_said_so_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json_atomic(path, {"old": True})

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_json_atomic(path, {"new": True})
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_json_refuses_nan_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(tmp_path / "x.json", {"x": float("nan")})
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(OutputError, match=r"y\.json"):
        read_json(tmp_path / "y.json")
