"""Synthetic rows in a stage: what synthesis writes is what training reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted import ANIMALS, INSTRUCTION, Scripted, fresh_input

from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.synthesis import from_recipe
from stillhouse.synthesis.from_recipe import synthesize_recipe
from stillhouse.synthesis.run import SynthesisModels
from stillhouse.training.run import train


def test_synthesize_then_two_stages(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    turns = [[{"role": "user", "content": INSTRUCTION + t}, {"role": "assistant", "content": a}] for t, a in ANIMALS]
    lines = [json.dumps({"domain": "pets", "messages": m, "answer": m[1]["content"]}) for m in turns]
    (tmp_path / "human.jsonl").write_text("\n".join(lines) + "\n")
    optimisation = {
        "budget": {"epochs": 1},
        "batch_tokens": 256,
        "micro_batch_tokens": 256,
        "precision": "float32",
        "compile_head": False,
    }
    own = {"train": [{"path": "made/synthetic.jsonl"}]}
    recipe = recipe_from_mapping(
        {
            "teacher": {"path": str(tiny_model_dir)},
            "student": {"path": str(tiny_model_dir)},
            "data": {"train": [{"path": "human.jsonl"}], "validation_fraction": 0.25, "max_seq_len": 256},
            "synthesis": {"dir": "made", "count": 5, "human_examples": 3, "format": {"type": "labels"}},
            "stages": [
                {"name": "synthetic", "data": own, "objective": {"type": "kd"}, "optimisation": optimisation},
                {"name": "human", "objective": {"type": "sft"}, "optimisation": optimisation},
            ],
            "evaluation": {"generation": {"rows": 0, "samples": 0}},
            "output": {"dir": str(tmp_path / "run")},
        }
    )
    models = SynthesisModels(Scripted(lambda _, n: fresh_input(n)), Scripted(lambda _, n: ("yes", "no")[n % 2]))
    monkeypatch.setattr(from_recipe, "load_models", lambda *_: models)
    assert synthesize_recipe(recipe, base_dir=tmp_path).rows == 5
    result = train(recipe, base_dir=tmp_path).result
    assert result is not None
    assert result["data"]["train of synthetic"]["documents"] == 5
    assert result["data"]["train of synthetic"]["leaked_into_evaluation"] == 0
    assert list(result["data"]["train of synthetic"]["domains"]) == ["pets"]
    assert result["data"]["train"]["documents"] == 6
    assert [stage["name"] for stage in result["training"]["stages"]] == ["synthetic", "human"]
