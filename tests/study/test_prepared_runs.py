"""Runs that others build on: done first, waited for by those that name them, and DoReMi's three runs from one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import Recorder, WriteStudy, config_of

from stillhouse.cli.study import CompareOptions, comparison
from stillhouse.errors import RecipeError
from stillhouse.study.config import StudyConfig
from stillhouse.study.grid import Plan, plan_study
from stillhouse.study.runner import StudyOutcome, run_study

BASE: dict[str, Any] = {
    "teacher": {"path": "teacher"},
    "student": {"path": "student"},
    "data": {"train": [{"path": "a.jsonl"}]},
    "stages": [{"objective": {"type": "kd"}}],
    "output": {"dir": "unused"},
}
SFT = {"stages.0.objective": {"type": "sft"}}
FIRST = "{output}/prepare/first-seed{seed}"


def plan(tmp_path: Path, **fields: Any) -> Plan:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    data = {"name": "s", "base": "base.yaml", "output": "out", **fields}
    return plan_study(StudyConfig.from_mapping(data), tmp_path, where="study.yaml")


def test_runs_wait_for_those_that_they_name(tmp_path: Path) -> None:
    prepare = {"first": SFT, "second": {**SFT, "student.path": f"{FIRST}/model"}}
    axes = {"x": {"plain": {}, "built": {"student.path": "{output}/prepare/second-seed{seed}/model"}}}
    found = plan(tmp_path, prepare=prepare, axes=axes, seeds=[0, 1])
    assert {name: run.needs for name, run in found.runs.items()} == {
        "prepare/first-seed0": (),
        "prepare/second-seed0": ("prepare/first-seed0",),
        "prepare/first-seed1": (),
        "prepare/second-seed1": ("prepare/first-seed1",),
        "runs/plain-seed0": (),
        "runs/built-seed0": ("prepare/second-seed0",),
        "runs/plain-seed1": (),
        "runs/built-seed1": ("prepare/second-seed1",),
    }
    assert found.runs["prepare/second-seed1"].recipe.student.path == "out/prepare/first-seed1/model"
    assert [cell.run for cell in found.cells] == [name for name in found.runs if name.startswith("runs/")]


def test_a_longer_name_is_another_run(tmp_path: Path) -> None:
    axes = {"x": {"a": {"student.path": "{output}/prepare/first-seed10/model"}}}
    found = plan(tmp_path, prepare={"first": SFT}, axes=axes, seeds=[1, 10])
    assert found.runs["runs/a-seed1"].needs == ("prepare/first-seed10",)


def test_a_cell_that_equals_a_preparation_shares_its_run(tmp_path: Path) -> None:
    found = plan(tmp_path, prepare={"first": SFT}, axes={"method": {"sft": SFT, "kd": {}}})
    assert [cell.run for cell in found.cells] == ["prepare/first-seed0", "runs/kd-seed0"]
    assert list(found.runs) == ["prepare/first-seed0", "runs/kd-seed0"]


def test_a_budget_is_not_for_preparations(tmp_path: Path) -> None:
    own = {**SFT, "stages.0.optimisation.budget": {"steps": 3}}
    found = plan(tmp_path, prepare={"first": own}, budget={"updates": 50})
    steps = {name: run.recipe.stages[0].optimisation.budget.steps for name, run in found.runs.items()}
    assert steps == {"prepare/first-seed0": 3, "runs/seed0": 50}


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (
            {"first": {"student.path": "{output}/prepare/second-seed0"}, "second": {"student.path": FIRST}},
            r"study\.yaml: prepare: prepare/first-seed0, prepare/second-seed0 wait for each other",
        ),
        ({"first": {"seed": 3}}, r"prepare\.first: seed is set by the study"),
        ({"first": {"stages.0.objective.typ": "sft"}}, r"study\.yaml: prepare\.first: .*typ: unknown key"),
    ],
)
def test_wrong_preparations_are_named(tmp_path: Path, prepare: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        plan(tmp_path, prepare=prepare)


def test_doremi_from_one_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    stage = {"objective": {"type": "kd"}, "optimisation": {"budget": {"steps": 40}}}
    recipe.write_text(yaml.safe_dump({**BASE, "stages": [stage]}))
    (tmp_path / "out").mkdir()
    config = comparison(recipe, CompareOptions("kd,doremi", "0,1", None), tmp_path / "out")
    found = plan_study(config, tmp_path / "out")
    final = found.runs["runs/doremi-seed1"]
    assert final.needs == ("prepare/doremi_proxy-seed1",)
    assert final.recipe.stages[0].mixture.weights_from == str(tmp_path / "out/prepare/doremi_proxy-seed1")
    assert final.recipe.stages[0].mixture.interval_steps == 4
    proxy = found.runs["prepare/doremi_proxy-seed1"]
    assert proxy.needs == ("prepare/doremi_reference-seed1",)
    assert proxy.recipe.stages[0].objective.type == "doremi_proxy"
    assert found.runs["runs/kd-seed1"].needs == ()
    assert comparison(recipe, CompareOptions("kd", "0", None), tmp_path / "out").prepare == {}


def run(path: Path, view: Recorder, **options: Any) -> StudyOutcome:
    return run_study(plan_study(config_of(path), path.parent), base_dir=path.parent, view=view, **options)


@pytest.mark.slow
def test_doremi_runs_in_order_and_failures_spread(write_study: WriteStudy, tmp_path: Path) -> None:
    write_study("base_only", train={"steps": 2})
    config = comparison(tmp_path / "base.yaml", CompareOptions("doremi,kd", "0", None), tmp_path / "out")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "study.yaml"
    path.write_text(config.to_yaml())
    data = yaml.safe_load(path.read_text())
    data["axes"]["method"]["doremi"]["stages.*.mixture"]["interval_steps"] = 1
    broken = json.loads(json.dumps(data))
    broken["prepare"]["doremi_reference"]["student.path"] = "nowhere/at/all"
    path.write_text(yaml.safe_dump(broken))
    view = Recorder()
    outcome = run(path, view)
    rows = {row["labels"]["method"]: row for row in outcome.result["rows"]}
    assert rows["kd"]["status"] == "done"
    assert rows["doremi"]["error"] == "it builds on prepare/doremi_proxy-seed0, which failed"
    assert outcome.num_failed == 3
    shutil.rmtree(tmp_path / "out" / "prepare" / "doremi_reference-seed0")
    path.write_text(yaml.safe_dump(data))
    view = Recorder()
    outcome = run(path, view, retry_failed=True)
    assert view.started_runs == ["prepare/doremi_reference-seed0", "prepare/doremi_proxy-seed0", "runs/doremi-seed0"]
    assert [row["status"] for row in outcome.result["rows"]] == ["done", "done"]
    assert (tmp_path / "out" / "prepare" / "doremi_proxy-seed0" / "doremi_weights.json").exists()
