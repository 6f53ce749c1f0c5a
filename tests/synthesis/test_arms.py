"""The arms of a low-resource study: what each trains on, for how long, and that the shipped file is theirs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stillhouse.cli.main import main
from stillhouse.errors import RecipeError
from stillhouse.mixture.plan import Plan
from stillhouse.recipe import Budget, Recipe
from stillhouse.recipe_io import load_recipe, recipe_from_mapping, set_field
from stillhouse.study.config import StudyConfig
from stillhouse.study.grid import plan_study
from stillhouse.synthesis.arms import ACROSS_SIZES, arms, arms_study, split_ratios

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "recipes" / "studies" / "low_resource_arms.yaml"
X = "runs/rows/synthetic.jsonl"


@pytest.fixture
def data() -> dict[str, Any]:
    return {
        "teacher": {"path": "teacher"},
        "student": {"path": "student"},
        "data": {"train": [{"path": "human.jsonl"}]},
        "stages": [
            {
                "name": "warm",
                "data": {"train": [{"path": X}]},
                "objective": {"type": "kd", "temperature": 2.0},
                "optimisation": {"budget": {"epochs": 2}, "learning_rate": 3e-4},
            },
            {"name": "refine", "objective": {"type": "sft"}, "optimisation": {"budget": {"epochs": 3}}},
        ],
        "output": {"dir": "runs/x"},
    }


def stages(data: dict[str, Any], overrides: dict[str, Any]) -> list[tuple[str, list[str], float]]:
    """(loss, files, epochs) of each stage of an arm, read back through the recipe."""
    recipe = recipe_from_mapping({**data, **overrides})
    files = [[s.path for s in (stage.data or recipe.data).train] for stage in recipe.stages]
    epochs = [stage.optimisation.budget.epochs or 0 for stage in recipe.stages]
    losses = [stage.objective.type for stage in recipe.stages]
    return list(zip(losses, files, epochs, strict=True))


def built(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    settings = {"synthetic": X, "ratio": 10, "num_human": 200, "ratios": (1, 3)}
    return arms(recipe_from_mapping(data), **{**settings, **changes})


def test_on_policy_arms_have_the_cached_teacher_beside_them_and_need_its_weights(data: dict[str, Any]) -> None:
    del data["stages"][0]["objective"]["temperature"]
    cached = {"path": "teacher", "source": "cache", "cache": {"dir": "cache"}}
    found = built({**data, "teacher": cached})
    live = set()
    for label, overrides in found.items():
        fields = {**data, "teacher": dict(cached)}
        for key, value in overrides.items():
            set_field(fields, key, value, where=label)
        teacher = recipe_from_mapping(fields).teacher
        assert teacher is not None
        live |= {label} if teacher.source == "live" else set()
    assert live == {"human_gkd", "two_stage_kd_gkd"}
    server = {"url": "http://127.0.0.1:8000/v1", "model": "teacher"}
    codec = {"type": "topk_ghost", "k": 20}
    served = {"path": "teacher", "source": "server", "server": server, "cache": {"dir": "cache", "codec": codec}}
    assert set(found) - set(built({**data, "teacher": served})) == {"human_gkd", "two_stage_kd_gkd"}


def test_what_each_arm_trains_on(data: dict[str, Any]) -> None:
    found = {label: stages(data, overrides) for label, overrides in built(data).items()}
    human, synthetic = ["human.jsonl"], [X]
    assert found["human_sft"] == [("sft", human, 3)]
    assert found["human_kd"] == [("kd", human, 3)]
    assert found["human_gkd"] == [("gkd", human, 3)]
    assert found["synthetic_sft"] == [("sft", synthetic, 2)]
    assert found["synthetic_kd"] == [("kd", synthetic, 2)]
    for before in ("sft", "kd"):
        for after in ("sft", "kd"):
            expected = [(before, synthetic, 2), (after, human, 3)]
            assert found[f"two_stage_{before}_{after}"] == expected
    assert found["two_stage_kd_gkd"] == [("kd", synthetic, 2), ("gkd", human, 3)]
    assert found["reversed_kd_kd"] == [("kd", human, 3), ("kd", synthetic, 2)]
    assert found["reversed_sft_sft"] == [("sft", human, 3), ("sft", synthetic, 2)]
    assert found["mixed_natural"] == [("kd", [X, "human.jsonl"], 2)]
    assert found["mixed_natural_sft"] == [("sft", [X, "human.jsonl"], 2)]
    assert set(found) == {
        *("human_sft", "human_kd", "human_gkd", "human_sft_matched", "human_kd_matched"),
        *("synthetic_sft", "synthetic_kd"),
        *(f"two_stage_{a}_{b}" for a in ("sft", "kd") for b in ("sft", "kd")),
        *("two_stage_kd_gkd", "reversed_kd_kd", "mixed_natural", "mixed_matched"),
        *("reversed_sft_sft", "mixed_natural_sft", "mixed_matched_sft"),
        *("two_stage_kd_kd_r1", "two_stage_kd_kd_r3"),
    }


def test_matched_arms_see_as_many_rows_as_both_stages(data: dict[str, Any]) -> None:
    found = {label: stages(data, overrides) for label, overrides in built(data).items()}
    # 2 epochs of 2,000 rows and 3 of 200 are 4,600 rows: 23 epochs of 200, 2.0909 of 2,200.
    assert found["human_sft_matched"] == [("sft", ["human.jsonl"], 23)]
    assert found["human_kd_matched"] == [("kd", ["human.jsonl"], 23)]
    ((_, files, epochs),) = found["mixed_matched"]
    assert files == [X, "human.jsonl"]
    assert epochs * 2200 == pytest.approx(4600, abs=0.2)
    assert found["mixed_matched_sft"] == [("sft", files, epochs)]


def test_updates_of_two_hundred_human_rows_and_ten_for_each() -> None:
    """16 rows a step: ceil(2 * 2000 / 16) = 250 and ceil(3 * 200 / 16) = 38; the last may cross the epochs' end."""
    steps = [
        Plan(np.ones(rows, np.int64), batch_tokens=16, seed=0).num_steps_for(Budget(epochs=epochs))
        for rows, epochs in ((2000, 2), (200, 3))
    ]
    assert steps == [250, 38]


def test_smaller_ratios_are_subsets(data: dict[str, Any]) -> None:
    found = built(data, ratios=(1, 3, 10, 30))
    limits = {
        label: overrides["stages"][0]["data"]["train"][0].get("limit")
        for label, overrides in found.items()
        if label.startswith("two_stage_kd_kd")
    }
    # There are ten for each: ten is the arm itself, and thirty cannot be had.
    assert limits == {"two_stage_kd_kd": None, "two_stage_kd_kd_r1": 200, "two_stage_kd_kd_r3": 600}


def test_a_ratio_that_is_no_arm_says_why() -> None:
    """Reached 9.6: five per cent of it are 0.48, so 9.12 to 10.08 are all rows."""
    smaller, left_out = split_ratios([1, 9.1, 9.2, 10, 10.1], 9.6)
    assert smaller == [1, 9.1]
    assert left_out == [
        "ratio 9.2: no arm of its own, 9.6 was reached and two_stage_kd_kd has it",
        "ratio 10: no arm of its own, 9.6 was reached and two_stage_kd_kd has it",
        "ratio 10.1: left out, the synthesis reached 9.6 rows for each human one",
    ]
    with pytest.raises(RecipeError, match="ratios=0: expected synthetic rows"):
        split_ratios([0], 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": [50, 500]}, "sizes=500: there are 200 human rows"),
        ({"sizes": [200]}, "sizes=200: there are 200 human rows.*from 1 to 199"),
        ({"sizes": [0]}, "sizes=0: "),
        ({"sizes": [50], "synthetic": "rows/{human}/synthetic.jsonl"}, r"each seed draws other human rows.*\{seed\}"),
        ({"seeds": []}, "seeds: there is none"),
    ],
)
def test_sweeps_that_would_give_wrong_evidence(data: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    settings = {"seeds": [0, 1], "synthetic": "rows/{human}-{seed}/synthetic.jsonl", "ratio": 3, "num_human": 200}
    with pytest.raises(RecipeError, match=message):
        arms_study(recipe_from_mapping(data), base="b", output="o", **{**settings, **changes})


def test_one_seed_needs_no_seed_in_the_path(data: dict[str, Any]) -> None:
    study = arms_study(
        recipe_from_mapping(data),
        base="b",
        output="o",
        seeds=[4],
        synthetic="rows/{human}/synthetic.jsonl",
        ratio=3,
        num_human=200,
        sizes=[199],
    )
    assert set(study["axes"]["human"]) == {"199", "all"}


def test_arms_keep_the_recipes_own_losses_and_rates(data: dict[str, Any]) -> None:
    recipe = recipe_from_mapping({**data, **built(data)["two_stage_kd_kd"]})
    assert [getattr(stage.objective, "temperature", None) for stage in recipe.stages] == [2.0, 2.0]
    assert [stage.optimisation.learning_rate for stage in recipe.stages] == [3e-4, 2e-4]


def test_without_synthetic_rows_an_arm_is_the_one_on_human_rows(data: dict[str, Any]) -> None:
    """Stages are left out when nothing was kept, and the stage on human rows is the same in every arm."""
    found = built(data)
    first, second = found["two_stage_kd_kd"]["stages"]
    assert first["data"]["when_empty"] == "skip"
    assert [second] == found["human_kd"]["stages"]


def test_fewer_human_rows_come_with_rows_of_their_own(data: dict[str, Any], tmp_path: Path) -> None:
    study = arms_study(
        recipe_from_mapping(data),
        base="base.yaml",
        output="runs/arms",
        seeds=[0, 1],
        synthetic="rows/{human}-seed{seed}/synthetic.jsonl",
        ratio=3,
        num_human=200,
        sizes=(100, 50),
    )
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(data))
    plan = plan_study(StudyConfig.from_mapping(study), tmp_path)
    recipes = {(c.labels["human"], c.labels["arm"], c.seed): plan.runs[c.run].recipe for c in plan.cells}
    assert {arm for human, arm, _ in recipes if human == "50"} == set(ACROSS_SIZES)
    small = recipes["50", "two_stage_kd_kd", 1]
    assert small.data.train[0].limit == 50
    assert small.stages[0].data is not None
    assert small.stages[0].data.train[0].path == "rows/50-seed1/synthetic.jsonl"
    assert recipes["all", "human_sft", 0].data.train[0].limit is None
    with pytest.raises(RecipeError, match=r"write \{human\} into the path"):
        arms_study(
            recipe_from_mapping(data),
            base="b",
            output="o",
            seeds=[0],
            synthetic=X,
            ratio=3,
            num_human=200,
            sizes=[50],
        )


def recipe_with(data: dict[str, Any], **changes: Any) -> Recipe:
    return recipe_from_mapping({**data, **changes})


def test_recipes_that_have_no_arms(data: dict[str, Any]) -> None:
    settings: Any = {"synthetic": X, "ratio": 3, "num_human": 10}
    sft = {"objective": {"type": "sft"}, "optimisation": {"budget": {"epochs": 1}}}
    with pytest.raises(RecipeError, match="stages: the arms are made from two stages"):
        arms(recipe_with(data, stages=[sft]), **settings)
    by_steps = [
        {**sft, "data": {"train": [{"path": X}]}},
        {**sft, "name": "b", "optimisation": {"budget": {"steps": 1}}},
    ]
    with pytest.raises(RecipeError, match=r"stages.1.optimisation.budget: .* must be in epochs alone"):
        arms(recipe_with(data, stages=by_steps), **settings)
    no_teacher = {**data, "stages": [{**sft, "data": {"train": [{"path": X}]}}, {**sft, "name": "b"}]}
    del no_teacher["teacher"]
    with pytest.raises(RecipeError, match="teacher: the arms compare SFT with KD"):
        arms(recipe_from_mapping(no_teacher), **settings)


def test_the_shipped_study_is_made_of_the_shipped_recipe() -> None:
    shipped = yaml.safe_load(STUDY.read_text())
    study = arms_study(
        load_recipe(ROOT / "recipes" / "two_stage.yaml"),
        base="../two_stage.yaml",
        output="runs/low_resource_arms",
        seeds=[0, 1, 2],
        synthetic="runs/low_resource_rows/{human}-seed{seed}/synthetic.jsonl",
        ratio=10,
        num_human=200,
        ratios=[1, 3],
        sizes=[50, 100],
    )
    overrides = shipped.pop("overrides")
    assert overrides == {"data.validation": [{"path": "data/held_out.jsonl"}]}
    assert shipped == study


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: dict[str, Any]) -> Path:
    """A recipe whose synthesis made 24 rows from 8 seeds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STILLHOUSE_DEBUG", raising=False)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "runs" / "rows").mkdir(parents=True)
    report = {"seeds": 8, "kept": 24, "ratio_achieved": 3.0, "contaminated_seeds": []}
    (tmp_path / "runs" / "rows" / "synthesis_report.json").write_text(json.dumps(report))
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["stillhouse", "arms", "recipe.yaml", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_a_study_of_ones_own_recipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--seeds", "0,1", "--ratios", "1,3,10", "-o", "runs/mine") == 0
    said = capsys.readouterr().out
    assert "next: stillhouse study runs/mine/study.yaml --dry-run" in said
    assert "ratio 3: no arm of its own" in said
    assert "ratio 10: left out, the synthesis reached 3 rows" in said
    plan = plan_study(StudyConfig.from_yaml(folder / "runs/mine/study.yaml"), folder / "runs/mine")
    assert len(plan.cells) == 2 * 19
    matched = next(c for c in plan.cells if c.labels["arm"] == "human_kd_matched")
    assert plan.runs[matched.run].recipe.stages[0].optimisation.budget.epochs == 9
    assert call(monkeypatch, "-o", "runs/mine") == 2
    assert "exists already" in capsys.readouterr().err


def test_seeds_that_were_left_out_are_human_rows_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"seeds": 8, "kept": 24, "ratio_achieved": 3.0, "contaminated_seeds": ["a gives away b"] * 4}
    (folder / "runs" / "rows" / "synthesis_report.json").write_text(json.dumps(report))
    assert call(monkeypatch, "--seeds", "0", "--ratios", "1", "-o", "runs/mine") == 0
    plan = plan_study(StudyConfig.from_yaml(folder / "runs/mine/study.yaml"), folder / "runs/mine")
    recipes = {cell.labels["arm"]: plan.runs[cell.run].recipe for cell in plan.cells}
    epochs = recipes["human_kd"].stages[0].optimisation.budget.epochs
    before = recipes["two_stage_kd_kd"].stages[0].optimisation.budget.epochs
    assert epochs is not None
    assert before is not None
    assert recipes["human_kd_matched"].stages[0].optimisation.budget.epochs == epochs + 2 * before
    rows = recipes["two_stage_kd_kd_r1"].stages[0].data
    assert rows is not None
    assert rows.train[0].limit == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "a"), "--seeds a: expected numbers with commas"),
        (("--ratios", "-1"), "--ratios -1: expected numbers with commas"),
        (("--sizes", "4"), "write {human} into the path"),
        (("--sizes", "500"), "sizes=500: there are 8 human rows"),
        (("--sizes", "4.5"), "--sizes 4.5: expected whole numbers"),
        (("--ratios", "0"), "ratios=0: expected synthetic rows"),
        (("--seeds", ""), "--seeds: there is none; name at least one"),
        (("--synthetic", "gone/synthetic.jsonl"), "run `stillhouse synthesize` first"),
    ],
)
def test_arguments_that_do_not_do(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs" / "arms").exists()


def test_nothing_was_kept(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs" / "rows" / "synthesis_report.json").write_text('{"seeds": 8, "kept": 0, "contaminated_seeds": []}')
    assert call(monkeypatch) == 2
    assert "no row was kept" in capsys.readouterr().err
