"""From a study file to runs: order, overrides, exclusions, shared runs, and errors that name axis, label and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.data.sources import load_rows
from stillhouse.errors import RecipeError
from stillhouse.study.config import StudyConfig
from stillhouse.study.grid import Plan, fill_in, held_out_notes, plan_study

BASE: dict[str, Any] = {
    "teacher": {"path": "teacher"},
    "student": {"path": "student"},
    "data": {"train": [{"path": "a.jsonl"}, {"path": "b.jsonl"}], "validation": [{"path": "v.jsonl"}]},
    "stages": [{"objective": {"type": "kd"}}],
    "output": {"dir": "unused", "license": "mit"},
}
METHODS = {"kd": {}, "sft": {"stages.0.objective": {"type": "sft"}}}
SIZES = {"10": {"data.train.*.limit": 10}, "20": {"data.train.*.limit": 20}}


def plan(tmp_path: Path, base: dict[str, Any] | None = None, **fields: Any) -> Plan:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base or BASE))
    data = {"name": "s", "base": "base.yaml", "output": "out", **fields}
    return plan_study(StudyConfig.from_mapping(data), tmp_path, where="study.yaml")


def test_every_combination_once_seeds_outermost(tmp_path: Path) -> None:
    found = plan(tmp_path, axes={"size": SIZES, "method": METHODS}, seeds=[1, 0])
    names = [f"runs/{size}-{method}-seed{seed}" for seed in (1, 0) for size in (10, 20) for method in ("kd", "sft")]
    assert list(found.runs) == names
    assert [cell.run for cell in found.cells] == names
    assert found.cells[0].labels == {"size": "10", "method": "kd"}
    assert found.cells[0].describe() == "size=10, method=kd, seed 1"
    recipe = found.runs["runs/20-sft-seed0"].recipe
    assert (recipe.seed, recipe.output.dir, recipe.output.license) == (0, "out/runs/20-sft-seed0", "mit")
    assert [source.limit for source in recipe.data.train] == [20, 20]
    assert recipe.stages[0].objective.type == "sft"


def test_without_axes_there_is_a_run_for_each_seed(tmp_path: Path) -> None:
    assert list(plan(tmp_path, seeds=[0, 7]).runs) == ["runs/seed0", "runs/seed7"]


def test_overrides_by_index_by_star_and_whole(tmp_path: Path) -> None:
    overrides = {
        "stages.0.objective.divergence": {"type": "jsd", "beta": 0.25},
        "stages.0.objective.temperature": 2.0,
        "data.train.1.limit": 5,
        "data.train.*.format": "text",
        "evaluation.generation.rows": 0,
    }
    recipe = plan(tmp_path, axes={"x": {"a": overrides}}).runs["runs/a-seed0"].recipe
    objective = recipe.stages[0].objective.model_dump()
    assert objective["divergence"] == {"type": "jsd", "beta": 0.25}
    assert objective["temperature"] == 2.0
    assert [(s.limit, s.format) for s in recipe.data.train] == [(None, "text"), (5, "text")]
    assert recipe.evaluation.generation.rows == 0


def test_a_later_axis_overrides_an_earlier_one(tmp_path: Path) -> None:
    axes = {"teacher": {"big": {"teacher.path": "big"}}, "method": {"sft": {**METHODS["sft"], "teacher": None}}}
    assert plan(tmp_path, axes=axes).runs["runs/big-sft-seed0"].recipe.teacher is None


def test_common_overrides_come_before_the_axes(tmp_path: Path) -> None:
    common = {"data.train.*.limit": 7, "teacher.path": "{size}.{seed}"}
    found = plan(tmp_path, overrides=common, axes={"size": {"all": {}, "10": SIZES["10"]}})
    recipes = [run.recipe for run in found.runs.values()]
    assert [recipe.data.train[0].limit for recipe in recipes] == [7, 10]
    assert [recipe.teacher.path for recipe in recipes if recipe.teacher] == ["all.0", "10.0"]
    with pytest.raises(RecipeError, match=r"study.yaml: overrides: sed: unknown key.*\(set by 'sed'\)"):
        plan(tmp_path, overrides={"sed": 1}, axes={"size": SIZES})


def test_exclusions_match_all_their_labels(tmp_path: Path) -> None:
    axes = {"size": SIZES, "method": METHODS}
    found = plan(tmp_path, axes=axes, exclude=[{"size": "20", "method": "sft"}])
    assert [cell.labels for cell in found.cells] == [
        {"size": "10", "method": "kd"},
        {"size": "10", "method": "sft"},
        {"size": "20", "method": "kd"},
    ]
    with pytest.raises(RecipeError, match="exclude leaves out every run"):
        plan(tmp_path, axes=axes, exclude=[{"method": "kd"}, {"method": "sft"}])


def test_equal_recipes_share_one_run(tmp_path: Path) -> None:
    teachers = {"small": {}, "big": {"teacher.path": "big"}}
    methods = {"kd": {}, "sft": {**METHODS["sft"], "teacher": None}}
    found = plan(tmp_path, axes={"teacher": teachers, "method": methods})
    assert list(found.runs) == ["runs/small-kd-seed0", "runs/small-sft-seed0", "runs/big-kd-seed0"]
    assert [cell.run for cell in found.cells] == [*list(found.runs)[:2], "runs/big-kd-seed0", "runs/small-sft-seed0"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"stages.0.objective.typ": "sft"},
            r"study.yaml: axes.x.a: stages.0.objective.typ: unknown key. Did you mean 'type'\? \(set by 'stages.0.obj",
        ),
        ({"stages.0.optimisation.learning_rate": -1}, r"axes.x.a: stages.0.optimisation.learning_rate=-1"),
        ({"stages.1.objective.type": "sft"}, "axes.x.a: stages.1.objective.type: stages.1 is not an index"),
        ({"student.path.x": 1}, "axes.x.a: student.path.x: student.path is a plain value"),
        ({"data.train.*.limit": 0}, r"axes.x.a: data.train.0.limit=0.*\(set by 'data.train.\*.limit'\)"),
        ({"teacher": None}, "study.yaml: axes.x.a|study.yaml: x=a.*needs a teacher"),
    ],
)
def test_a_wrong_override_is_named_by_axis_label_and_field(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(tmp_path, axes={"x": {"a": overrides, "fine": {}}, "method": METHODS}, seeds=[0, 1, 2])


def test_what_is_wrong_is_said_once_and_all_of_it(tmp_path: Path) -> None:
    axes = {"x": {"a": {"sed": 1}, "b": {"stages.0.naem": "x"}}, "method": METHODS}
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, axes=axes, seeds=[0, 1, 2])
    lines = str(caught.value).splitlines()
    assert [line.split(" unknown")[0] for line in lines] == [
        "study.yaml: axes.x.a: sed:",
        "study.yaml: axes.x.b: stages.0.naem:",
    ]


def test_a_mistake_of_the_base_is_the_base_s(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, {**BASE, "sed": 1}, axes={"method": METHODS})
    assert str(caught.value) == "base.yaml: sed: unknown key. Did you mean 'seed'?"


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere.yaml: there is no such file"):
        plan_study(StudyConfig.from_mapping({"name": "s", "base": "nowhere.yaml", "output": "o"}), tmp_path)


def test_labels_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    axes = {"x": {"a": {}, "a-b": {}}, "y": {"b-c": {}, "c": {}}}
    with pytest.raises(RecipeError, match=r"x=a, y=b-c and x=a-b, y=c would share the folder runs/a-b-c-seed0"):
        plan(tmp_path, axes=axes)


def test_rows_held_out_of_drawn_training_rows_are_pointed_out(tmp_path: Path) -> None:
    split_off = {**BASE, "data": {"train": BASE["data"]["train"]}}
    assert held_out_notes(plan(tmp_path, axes={"size": SIZES})) == []
    assert held_out_notes(plan(tmp_path, split_off, seeds=[0, 1])) == []
    assert "data.validation" in held_out_notes(plan(tmp_path, split_off, axes={"size": SIZES}))[0]
    limited = {**split_off, "data": {"train": [{"path": "a.jsonl", "limit": 3}]}}
    assert held_out_notes(plan(tmp_path, limited)) == []
    assert len(held_out_notes(plan(tmp_path, limited, seeds=[0, 1]))) == 1


def test_arms_that_follow_the_gap_beside_others_want_a_test_set(tmp_path: Path) -> None:
    following = {"stages.0.mixture": {"type": "ddk", "validation_tokens_per_domain": 300}}
    axes = {"method": {"kd": {}, "ddk": following}}
    assert "`evaluation.test`" in held_out_notes(plan(tmp_path, axes=axes))[0]
    tested = {**BASE, "evaluation": {"test": [{"path": "t.jsonl"}]}}
    assert held_out_notes(plan(tmp_path, tested, axes=axes)) == []
    alphas = {f"a{alpha}": {**following, "stages.0.mixture.alpha": alpha} for alpha in (0.2, 0.8)}
    assert held_out_notes(plan(tmp_path, axes={"alpha": alphas})) == []


def test_sizes_are_nested_for_each_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {**BASE, "data": {**BASE["data"], "train": [{"path": "a.jsonl"}]}}
    sizes = {str(n): {"data.train.*.limit": n} for n in (40, 5, 20)}
    found = plan(tmp_path, base, axes={"size": sizes}, seeds=[0, 1])
    drawn = {
        (run.cell.labels["size"], run.cell.seed): {
            row.id for row in load_rows(run.recipe.data.train, seed=run.recipe.seed, base_dir=tmp_path)
        }
        for run in found.runs.values()
    }
    for seed in (0, 1):
        assert [len(drawn[size, seed]) for size in ("5", "20", "40")] == [5, 20, 40]
        assert drawn["5", seed] < drawn["20", seed] < drawn["40", seed]
    assert drawn["20", 0] != drawn["20", 1]


def test_values_name_the_runs_own_seed_and_labels() -> None:
    names = {"size": "64", "seed": "3"}
    value = {"path": "teachers/{size}-seed{seed}/model", "other": ["{size}", "{unknown}", 7]}
    assert fill_in(value, names) == {"path": "teachers/64-seed3/model", "other": ["64", "{unknown}", 7]}
