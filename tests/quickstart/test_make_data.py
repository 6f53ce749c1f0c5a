"""The committed rows are what the generator makes, and the held-out rows are really held out."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import yaml

from stillhouse.quickstart.make_data import DATA, DOMAINS, HERE, Draws, draw_numbers, make_rows, render
from stillhouse.recipe import Recipe

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    return {
        split: [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in SPLITS
    }


def prompt(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def completion(row: dict[str, Any]) -> str:
    return str(row["messages"][1]["content"])


@pytest.mark.parametrize("split", SPLITS)
def test_committed_rows_are_reproduced_byte_for_byte(split: Any) -> None:
    assert (DATA / f"{split}.jsonl").read_bytes() == render(split).encode()


def test_sizes_and_domains(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert 600 <= len(rows["train"]) <= 900
    assert 100 <= len(rows["validation"]) <= 150
    for split, least in (("train", 100), ("validation", 15)):
        counts = Counter(row["domain"] for row in rows[split])
        assert set(counts) == set(DOMAINS)
        assert min(counts.values()) >= least


def test_rows_have_one_user_and_one_assistant_turn_and_unique_ids(rows: dict[str, list[dict[str, Any]]]) -> None:
    every = rows["train"] + rows["validation"]
    assert len({row["id"] for row in every}) == len(every)
    for row in every:
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
        assert len(prompt(row).split()) + len(completion(row).split()) < 110
        assert not re.search(r"[{}<|>]|\s$|  ", prompt(row) + completion(row)), row


def test_answers_stand_in_the_completion(rows: dict[str, list[dict[str, Any]]]) -> None:
    for row in rows["train"] + rows["validation"]:
        if "answer" in row:
            assert row["answer"].lower() in completion(row).lower(), row


def test_every_equation_in_the_word_problems_is_true(rows: dict[str, list[dict[str, Any]]]) -> None:
    compute = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    checked = 0
    for row in rows["train"] + rows["validation"]:
        if row["domain"] == "arithmetic":
            for a, sign, b, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", completion(row)):
                assert compute[sign](int(a), int(b)) == int(result), row
                checked += 1
            assert re.findall(r"\d+", completion(row))[-1] == row["answer"]
    assert checked > 150


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def test_held_out_rows_are_no_copies_of_training_rows(rows: dict[str, list[dict[str, Any]]]) -> None:
    train_prompts = {" ".join(words(prompt(row))) for row in rows["train"]}
    train_completions = {" ".join(words(completion(row))) for row in rows["train"]}
    bigrams = [set(pairwise(words(prompt(row)))) for row in rows["train"]]
    for row in rows["validation"]:
        assert " ".join(words(prompt(row))) not in train_prompts
        assert " ".join(words(completion(row))) not in train_completions
        own = set(pairwise(words(prompt(row))))
        nearest = max(len(own & other) / len(own | other) for other in bigrams)
        assert nearest < 0.8, (nearest, prompt(row))


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="operation=power"):
        draw_numbers("power", Draws("test"))


def test_draws_depend_on_their_purpose_only() -> None:
    assert Draws("a").shuffled(range(20)) == Draws("a").shuffled(range(20))
    assert Draws("a").shuffled(range(20)) != Draws("b").shuffled(range(20))
    assert {Draws("c").between(2, 3) for _ in range(3)} <= {2, 3}
    assert make_rows("validation") == make_rows("validation")


def test_the_recipe_template_is_a_valid_recipe_whose_files_exist() -> None:
    recipe = Recipe.model_validate(yaml.safe_load((HERE / "recipe.yaml").read_text(encoding="utf-8")))
    for source in (*recipe.data.train, *recipe.data.validation):
        assert (HERE / source.path).is_file()
