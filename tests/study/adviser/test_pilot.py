from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.rows import Message, Row
from stillhouse.data.sources import load_rows
from stillhouse.errors import RecipeError
from stillhouse.recipe import KDObjective, Recipe, SourceConfig
from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.study.adviser.pilot import (
    Amount,
    pilot_epochs,
    pilot_objective,
    pilot_recipe,
    pilot_sizes,
    pilot_study,
    write_held_out,
)
from stillhouse.study.config import StudyConfig


def amount(rows: int, tokens_per_row: int = 100) -> Amount:
    return Amount((rows,), rows, rows * tokens_per_row)


def base(recipe: Recipe, **more: Any) -> tuple[dict[str, Any], list[str]]:
    return pilot_recipe(recipe, **{"folder": Path("p"), "student": None, "validation": (), "epochs": 1.0, **more})


def test_sizes_go_from_a_tenth_down_by_thirds() -> None:
    assert pilot_sizes(amount(100_000), epochs=1, batch_tokens=1000) == (123, 370, 1111, 3333, 10_000)


def test_sizes_keep_eight_steps() -> None:
    # 8 steps of 4,096 tokens are 328 rows of 100 tokens, 164 in two epochs
    assert pilot_sizes(amount(30_000), epochs=1, batch_tokens=4096) == (333, 1000, 3000)
    assert pilot_sizes(amount(30_000), epochs=2, batch_tokens=4096) == (333, 1000, 3000)
    assert pilot_sizes(amount(30_000), epochs=4, batch_tokens=4096)[0] == 111


def test_little_data_gets_larger_shares() -> None:
    assert pilot_sizes(amount(2000), epochs=1, batch_tokens=2048) == (333, 1000)


def test_too_little_data_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.train: 400 rows make only 10 optimizer steps"):
        pilot_sizes(amount(400), epochs=1, batch_tokens=4096)


@pytest.mark.parametrize(
    ("budget", "epochs"), [({"epochs": 2}, 2.0), ({"steps": 50}, 2.0), ({"tokens": 5000, "epochs": 3}, 0.5)]
)
def test_budgets_become_epochs(recipe_data: dict[str, Any], budget: dict[str, Any], epochs: float) -> None:
    recipe_data["stages"][0]["optimisation"] = {"budget": budget, "batch_tokens": 400}
    assert pilot_epochs(recipe_from_mapping(recipe_data), tokens=10_000) == epochs


def test_the_pilot_learns_from_a_cache_at_the_recipes_temperature(recipe_data: dict[str, Any]) -> None:
    recipe_data["stages"][0]["objective"]["temperature"] = 2.0
    data, notes = base(recipe_from_mapping(recipe_data))
    made = recipe_from_mapping(data)
    assert made.teacher is not None
    assert made.teacher.cache is not None
    assert (made.teacher.cache.dir, made.teacher.cache.temperature) == ("p/targets", 2.0)
    assert made.teacher.cache.codec.type == "sampled"
    assert any("cached targets" in note for note in notes)


def test_other_divergences_get_a_codec_that_serves_them(recipe_data: dict[str, Any]) -> None:
    recipe_data["stages"][0]["objective"]["divergence"] = {"type": "reverse_kl"}
    data, _ = base(recipe_from_mapping(recipe_data))
    assert data["teacher"]["cache"]["codec"]["type"] == "topk_ghost"
    recipe_from_mapping(data)


def test_a_cache_of_the_users_own_is_kept(recipe_data: dict[str, Any]) -> None:
    recipe_data["teacher"].update(source="cache", cache={"dir": "mine"})
    data, notes = base(recipe_from_mapping(recipe_data))
    assert data["teacher"]["cache"]["dir"] == "mine"
    assert not any("cached" in note for note in notes)


def test_everything_that_differs_is_listed(recipe_data: dict[str, Any]) -> None:
    recipe_data["stages"] = [
        {"name": "a", "objective": {"type": "sft"}, "mixture": {"type": "ddk"}},
        {"name": "b", "objective": {"type": "sft"}},
    ]
    data, notes = base(
        recipe_from_mapping(recipe_data), student="p/initial", validation=[Path("p/held_out.text.jsonl")]
    )
    made = recipe_from_mapping(data)
    assert [stage.objective.type for stage in made.stages] == ["kd"]
    assert data["student"]["path"] == "p/initial"
    assert [(s.path, s.format) for s in made.data.validation] == [("p/held_out.text.jsonl", "text")]
    text = " ".join(notes)
    for words in ("further stages", "default one", "mixture is not rehearsed", "1 epochs"):
        assert words in text


def test_the_recipes_own_kd_is_rehearsed(recipe_data: dict[str, Any]) -> None:
    recipe_data["stages"][0]["objective"]["mixing"] = {"type": "additive", "gamma": 0.3}
    recipe = recipe_from_mapping(recipe_data)
    assert pilot_objective(recipe) == recipe.stages[0].objective
    assert pilot_objective(recipe) != KDObjective(type="kd")


def test_the_study_draws_from_all_sources_in_proportion() -> None:
    both = Amount((300, 100), 400, 40_000)
    data = pilot_study((40, 120), both, folder=Path("p"), seeds=(0, 1), objective=KDObjective(type="kd"), jobs=2)
    config = StudyConfig.from_mapping(data)
    assert config.axes["size"]["40"] == {"data.train.0.limit": 30, "data.train.1.limit": 10}
    assert list(config.axes["method"]) == ["sft", "kd"]
    assert (config.seeds, config.jobs) == ((0, 1), 2)


def test_held_out_rows_survive_the_way_to_disk(tmp_path: Path) -> None:
    rows = [
        Row((Message("user", "Hi"), Message("assistant", "Ho")), None, "chat", "Ho", "1", "a:1"),
        Row(None, "Raw «text»\nof two lines", "books", None, "2", "a:2"),
        Row(
            (Message("user", "Q"), Message("assistant", "A")), None, "qa", None, "3", "a:3", prompt="Q", completion="A"
        ),
    ]
    files = write_held_out(rows, tmp_path)
    sources = [SourceConfig.model_validate({"path": str(f), "format": f.name.split(".")[1]}) for f in files]
    back = {row.id: row for row in load_rows(sources, seed=0, base_dir=tmp_path)}
    for row in rows:
        found = back[row.id]
        assert (found.contents, found.domain, found.answer) == (row.contents, row.domain, row.answer)
    assert len(json.loads(files[0].read_text().splitlines()[0])["messages"]) == 2
