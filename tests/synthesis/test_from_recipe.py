"""From a recipe: which rows are seeds, which are held out, and which models are loaded."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from scripted import ANIMALS, INSTRUCTION, Scripted, fresh_input
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from fake_server import serving
from stillhouse.data.rows import Message
from stillhouse.errors import DataError, ModelError, RecipeError, SynthesisError
from stillhouse.recipe import Recipe
from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.rollout.generator import SamplingSettings
from stillhouse.synthesis import from_recipe
from stillhouse.synthesis.from_recipe import (
    load_models,
    seeds_and_evaluation,
    synthesize_recipe,
    write_writer_rows,
)
from stillhouse.synthesis.run import SynthesisModels


def animal_rows(path: Path, texts: list[str], domain: str = "pets") -> None:
    turns = [[{"role": "user", "content": INSTRUCTION + t}, {"role": "assistant", "content": "yes"}] for t in texts]
    lines = [json.dumps({"id": f"{path.stem}-{i}", "domain": domain, "messages": m}) for i, m in enumerate(turns)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def data(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    animal_rows(tmp_path / "human.jsonl", [text for text, _ in ANIMALS])
    return {
        "teacher": {"path": str(tiny_model_dir), "dtype": "float32"},
        "student": {"path": str(tiny_model_dir)},
        "data": {"train": [{"path": "human.jsonl"}], "validation_fraction": 0.25},
        "stages": [{"objective": {"type": "sft"}}],
        "synthesis": {"dir": "made", "count": 3, "human_examples": 2, "format": {"type": "regex", "pattern": ".*"}},
        "output": {"dir": "runs/x"},
    }


def recipe(data: dict[str, Any], **synthesis: Any) -> Recipe:
    return recipe_from_mapping({**data, "synthesis": {**data["synthesis"], **synthesis}})


def ids(rows: list[Any]) -> list[str]:
    return [row.id for row in rows]


def test_rows_that_will_validate_are_no_seeds(data: dict[str, Any], tmp_path: Path) -> None:
    seeds, evaluation = seeds_and_evaluation(recipe(data), tmp_path)
    assert len(evaluation) == 2
    assert sorted(ids(seeds) + ids(evaluation)) == [f"human-{i}" for i in range(8)]


def test_validation_test_and_further_rows_are_held_out(data: dict[str, Any], tmp_path: Path) -> None:
    for name, text in (("v", "an owl"), ("t", "a crow"), ("e", "a rook"), ("s", "a duck")):
        animal_rows(tmp_path / f"{name}.jsonl", [text])
    data["data"]["validation"] = [{"path": "v.jsonl"}]
    data["evaluation"] = {"test": [{"path": "t.jsonl"}]}
    seeds, evaluation = seeds_and_evaluation(recipe(data, evaluation=[{"path": "e.jsonl"}]), tmp_path)
    assert ids(seeds) == [f"human-{i}" for i in range(8)]
    assert ids(evaluation) == ["v-0", "t-0", "e-0"]
    seeds, _ = seeds_and_evaluation(recipe(data, seeds=[{"path": "s.jsonl"}]), tmp_path)
    assert ids(seeds) == ["s-0"]


def test_a_seed_that_is_tested_stops_everything_before_a_model_is_loaded(data: dict[str, Any], tmp_path: Path) -> None:
    data["teacher"]["path"] = "no/such/model"
    animal_rows(tmp_path / "t.jsonl", [ANIMALS[4][0]])
    data["evaluation"] = {"test": [{"path": "t.jsonl"}]}
    with pytest.raises(DataError, match=r"human.jsonl:5 gives away 100% of .*t.jsonl:1"):
        synthesize_recipe(recipe(data), base_dir=tmp_path)


def test_a_model_with_two_roles_is_loaded_once(data: dict[str, Any], tmp_path: Path) -> None:
    with ExitStack() as stack:
        models = load_models(recipe(data), tmp_path, tmp_path / "made", stack)
    assert models.inputs is models.labels
    assert models.scorer is not None
    assert models.input_parameters == models.label_parameters
    assert (models.input_parameters or 0) > 1000
    assert [bool(pattern.search("a <|im_end|> b")) for pattern in models.special] == [True]


def test_an_untrained_teacher_ends_with_what_it_did_wrong(data: dict[str, Any], tmp_path: Path) -> None:
    """A random model never ends its turn; its journal and report are there all the same."""
    brief = recipe(data, batch_size=2, max_fruitless_batches=1, inputs={"max_new_tokens": 4, "temperature": 1.0})
    with pytest.raises(SynthesisError, match="none of 2 candidates was kept"):
        synthesize_recipe(brief, base_dir=tmp_path)
    report = json.loads((tmp_path / "made" / "synthesis_report.json").read_text())
    assert report["tokens"]["inputs"]["prompt"] > 0
    assert report["tokens"]["inputs"]["flops"] > 0


@pytest.mark.parametrize("role", ["input_model", "label_model"])
def test_a_missing_model_is_named_by_its_field(data: dict[str, Any], tmp_path: Path, role: str) -> None:
    named = recipe(data, **{role: {"path": "./gone"}})
    with pytest.raises(ModelError, match=rf"synthesis.{role}.path=./gone"), ExitStack() as stack:
        load_models(named, tmp_path, tmp_path / "made", stack)


def test_a_served_model_is_a_drop_in(
    data: dict[str, Any], tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with serving(tiny_model, tiny_tokenizer) as server, ExitStack() as stack:
        served = {"path": "./gone", "source": "server", "server": {"url": server.url, "model": "demo"}}
        models = load_models(recipe(data, label_model=served), tmp_path, tmp_path / "made", stack)
        assert (models.scorer, models.label_parameters) == (None, None)
        (answer,) = models.labels.generate([[Message("user", "Hello")]], SamplingSettings(4), seed=0)
        assert answer.text
        assert (tmp_path / "made" / "label_model_answers.jsonl").exists()
        (note,) = models.notes
        assert "no tokenizer at synthesis.label_model.path=./gone" in note


def test_special_tokens_of_a_served_teacher_are_no_content(
    data: dict[str, Any], tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Its tokenizer is at teacher.path, although nothing else of it is here."""
    tiny_tokenizer.save_pretrained(tmp_path / "words")
    with serving(tiny_model, tiny_tokenizer) as server, ExitStack() as stack:
        data["teacher"] = {"path": "words", "source": "server", "server": {"url": server.url, "model": "demo"}}
        data["teacher"]["cache"] = {"dir": "cache", "codec": {"type": "topk_ghost", "k": 20}}
        models = load_models(recipe(data), tmp_path, tmp_path / "made", stack)
    assert [bool(pattern.search("a <|im_end|> b")) for pattern in models.special] == [True]
    assert models.notes == ()


def test_functions_reach_the_synthesis(data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A predicate, one for inputs, and a verifier go with the recipe; the notes of its models are warnings."""
    asked = SynthesisModels(Scripted(lambda _, n: fresh_input(n)), Scripted(lambda *_: "yes"), notes=("mind this",))
    monkeypatch.setattr(from_recipe, "load_models", lambda *_: asked)
    coded = recipe(data, format={"type": "predicate"}, input_format={"type": "predicate"})
    outcome = synthesize_recipe(
        coded,
        base_dir=tmp_path,
        predicate=lambda answer: answer == "yes",
        input_predicate=lambda text: not text.startswith("raven"),
        verifier=lambda text, answer: "otter" not in text,
    )
    assert outcome.report["rejected"]["verifier"] > 0
    assert outcome.report["rejected"]["input_format"] > 0
    assert "mind this" in outcome.report["warnings"]


def test_writer_rows_are_sft_rows_of_the_seeds(data: dict[str, Any], tmp_path: Path) -> None:
    few = recipe(data, human_examples=3, synthetic_examples=1)
    assert write_writer_rows(few, tmp_path / "writer.jsonl", rows_per_seed=2, base_dir=tmp_path) == 12
    rows = [json.loads(line) for line in (tmp_path / "writer.jsonl").read_text().splitlines()]
    assert all(len(row["messages"]) == 2 * 4 + 2 for row in rows)
    # A prompt with 6 examples and another seed as the answer takes 7; there are 6.
    with pytest.raises(DataError, match="has only 6 seeds"):
        write_writer_rows(
            recipe(data, human_examples=6, synthetic_examples=0),
            tmp_path / "w.jsonl",
            rows_per_seed=1,
            base_dir=tmp_path,
        )


@pytest.mark.parametrize(
    ("synthesis", "message"),
    [
        ({"ratio": 2}, "give one of ratio and count"),
        ({"count": None}, "give one of ratio and count"),
        ({"frame": "no place"}, "write {input} once"),
        ({"labels": {"samples": 3}}, "samples=3 greedy answers would be equal"),
        ({"label_model": {"path": "x", "source": "cache"}}, "label_model.source=cache: a cache cannot write"),
        ({"input_model": {"path": "x", "source": "server"}}, "input_model.server belong together"),
        ({"format": {"type": "regex", "pattern": "["}}, "is not a regular expression"),
        ({"format": None}, "synthesis.format"),
    ],
)
def test_recipes_that_cannot_be(data: dict[str, Any], synthesis: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("{", r"\{").replace("[", r"\[")):
        recipe(data, **synthesis)


def test_without_a_teacher_both_models_are_named(data: dict[str, Any]) -> None:
    del data["teacher"]
    with pytest.raises(RecipeError, match="synthesis needs a model to ask"):
        recipe(data, label_model={"path": "x"})
    assert recipe(data, label_model={"path": "x"}, input_model={"path": "y"}).synthesis is not None


def test_a_recipe_without_the_section(data: dict[str, Any], tmp_path: Path) -> None:
    del data["synthesis"]
    with pytest.raises(RecipeError, match="synthesis: the recipe has no such section"):
        synthesize_recipe(recipe_from_mapping(data), base_dir=tmp_path)
