"""A run with a teacher of another tokenizer: it learns, it is measured by bytes, and the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_distributed import assert_follows, launch
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import DataError, ModelError
from stillhouse.preflight.check import preflight
from stillhouse.recipe import Recipe
from stillhouse.training.cached import capture_recipe
from stillhouse.training.run import train

MakeRecipe = Callable[..., Recipe]
GOLD: dict[str, Any] = {"type": "cross_tokenizer", "method": {"type": "gold"}}
ULD: dict[str, Any] = {"type": "cross_tokenizer", "method": {"type": "uld"}, "merge": "observed"}


def steps(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("objective", [GOLD, ULD], ids=["gold", "uld"])
def test_a_student_learns_from_other_tokens(
    make_recipe: MakeRecipe, other_model_dir: Path, objective: dict[str, Any]
) -> None:
    optimisation = {"budget": {"steps": 20}, "learning_rate": 3e-3, "batch_tokens": 512, "micro_batch_tokens": 256}
    recipe = make_recipe(teacher={"path": str(other_model_dir)}, objective=objective, optimisation=optimisation)
    run = train(recipe)
    taken = steps(run.directory)
    assert taken[-1]["loss"] < taken[0]["loss"] - (0.3 if objective is ULD else 0.002)
    # With ULD's cross-entropy the student leaves a teacher that is nearly uniform; with GOLD it has nothing else.
    assert objective is ULD or taken[-1]["kd"] < taken[0]["kd"]
    assert all(step["top1_agreement"] is None and step["teacher_entropy"] is None for step in taken)
    assert all(step["teacher_nll"] > 0 for step in taken)
    result = run.result
    assert result is not None
    assert result["headline"]["teacher"] is None
    assert result["headline"]["gap_closed"] is None
    assert result["evaluation"]["teacher"] is None
    domains = result["evaluation"]["teacher_other_tokenizer"]["domains"]
    assert all(domain["bits_per_byte"] > 0 for domain in domains.values())
    assert "another tokenizer" in result["warnings"][0]
    assert "bits per byte" in result["warnings"][0]
    assert all(sample["teacher"] is not None for sample in result["samples"])


def test_the_gradient_does_not_depend_on_micro_batches(make_recipe: MakeRecipe, other_model_dir: Path) -> None:
    losses = []
    for tokens in (64, 512):
        optimisation = {"budget": {"steps": 2}, "batch_tokens": 512, "micro_batch_tokens": tokens}
        recipe = make_recipe(
            f"run-{tokens}", teacher={"path": str(other_model_dir)}, objective=GOLD, optimisation=optimisation
        )
        losses.append([(s["loss"], s["grad_norm"]) for s in steps(train(recipe).directory)])
    for small, large in zip(*losses, strict=True):
        assert small == pytest.approx(large, rel=1e-4)


def test_supervised_fine_tuning_is_measured_beside_a_teacher_with_other_tokens(
    make_recipe: MakeRecipe, other_model_dir: Path
) -> None:
    run = train(make_recipe(teacher={"path": str(other_model_dir)}, objective={"type": "sft"}))
    assert run.result is not None
    assert run.result["headline"]["teacher"] is None
    assert "another tokenizer" in run.result["warnings"][0]


def test_the_same_tokenizer_gives_a_group_to_every_token(make_recipe: MakeRecipe) -> None:
    run = train(make_recipe(objective=GOLD))
    assert run.result is not None
    assert run.result["headline"]["teacher"] is not None
    assert "teacher_other_tokenizer" not in run.result["evaluation"]


FIRST_DIFFERENCE = r"id 0 is '<\|endoftext\|>' for the student and '<unk>' for the teacher"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, r"stages\.0\.objective\.type=kd"),
        ({"objective": {"type": "gkd"}}, r"stages\.0\.objective\.type=gkd"),
        (
            {"objective": {"type": "sft"}, "mixture": {"type": "ddk", "interval_steps": 2}},
            r"stages\.0\.mixture\.type=ddk",
        ),
        ({"cache": True}, r"stages\.0\.objective\.type=kd"),
        ({"cache": True, "objective": {"type": "sft"}}, r"teacher\.source=cache"),
    ],
)
def test_what_needs_one_tokenizer_names_the_first_token_that_differs(
    make_recipe: MakeRecipe, other_model_dir: Path, tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    teacher: dict[str, Any] = {"path": str(other_model_dir)}
    if changes.get("cache"):
        teacher |= {"source": "cache", "cache": {"dir": str(tmp_path / "targets")}}
    recipe = make_recipe(teacher=teacher, objective=changes.get("objective"))
    if "mixture" in changes:
        dumped = recipe.model_dump(mode="json")
        dumped["stages"][0]["mixture"] = changes["mixture"]
        recipe = Recipe.model_validate(dumped)
    for check in (train, lambda r: preflight(r, base_dir=tmp_path)):
        with pytest.raises(ModelError, match=f"{field}.*{FIRST_DIFFERENCE}"):
            check(recipe)
    if changes.get("cache"):
        with pytest.raises(ModelError, match=FIRST_DIFFERENCE):
            capture_recipe(recipe, base_dir=tmp_path, announce=lambda plan: None)


def test_preflight_knows_both_tokenizers(make_recipe: MakeRecipe, other_model_dir: Path, tmp_path: Path) -> None:
    report = preflight(make_recipe(teacher={"path": str(other_model_dir)}, objective=GOLD), base_dir=tmp_path)
    assert report.teacher is not None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"teacher": {"path": "x", "source": "cache", "cache": {"dir": "y"}}}, r"use teacher\.source=live, not cache"),
        ({"student": {"type": "pruned", "vocabulary": {"min_count": 1}}}, r"student\.vocabulary keeps the tokens"),
        ({"teacher": None}, r"stages\.0\.objective\.type=cross_tokenizer needs a teacher"),
        ({"objective": {**GOLD, "method": {"type": "uld", "beta": 0.5}}}, "beta"),
        ({"objective": {**GOLD, "method": {"type": "gold", "kd_weight": 0}}}, "kd_weight"),
    ],
)
def test_the_recipe_refuses_what_other_tokens_cannot_do(
    make_recipe: MakeRecipe, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        make_recipe(**{"objective": GOLD, **changes})


def test_mixtures_that_follow_a_teacher_need_one_tokenizer(make_recipe: MakeRecipe) -> None:
    dumped = make_recipe(objective=GOLD).model_dump(mode="json")
    dumped["stages"][0]["mixture"] = {"type": "ddk"}
    with pytest.raises(ValueError, match=r"stages\.0\.mixture\.type=ddk compares NLL per token"):
        Recipe.model_validate(dumped)


def test_a_teacher_without_a_template_is_named_before_training(
    make_recipe: MakeRecipe, other_model_dir: Path, other_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in other_model_dir.iterdir():
        if "chat_template" not in file.name:
            (base / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"teacher\.path.*no chat template"):
        train(make_recipe(teacher={"path": str(base)}, objective=GOLD))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_follow_one(
    make_recipe: MakeRecipe, other_model_dir: Path, tmp_path: Path, strategy: str
) -> None:
    settings: dict[str, Any] = {
        "teacher": {"path": str(other_model_dir)},
        "objective": {**GOLD, "method": {"type": "gold", "ce_weight": 0.5}},
        "optimisation": {"learning_rate": 1e-3},
    }
    one = train(make_recipe("one", **settings)).directory
    launch(make_recipe("two", **settings, parallel={"strategy": strategy}), tmp_path, processes=2)
    assert_follows(one, tmp_path / "two")
