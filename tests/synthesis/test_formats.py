"""What a text must look like, and what samples vote on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from stillhouse.errors import DataError, RecipeError
from stillhouse.recipe import FormatConfig
from stillhouse.synthesis.formats import Format, Predicate, build_format

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def build(data: dict[str, Any], predicate: Predicate | None = None, base_dir: Path = Path()) -> Format:
    config: Any = TypeAdapter(FormatConfig).validate_python(data)
    return build_format(config, "synthesis.format", own=["red", " blue "], predicate=predicate, base_dir=base_dir)


def test_a_regular_expression_matches_the_whole_text() -> None:
    found = build({"type": "regex", "pattern": "Steps.*#### -?[0-9]+"})
    assert found.problem(" Steps:\n1 + 1\n#### 2\n") is None
    assert found.problem("Steps #### 2 apples") == "does not match 'Steps.*#### -?[0-9]+'"
    assert found.vote("Steps a #### 2") != found.vote("Steps b #### 2")


def test_a_group_named_answer_is_what_samples_vote_on() -> None:
    found = build({"type": "regex", "pattern": ".*#### (?P<answer>[0-9]+)"})
    assert found.vote("one way #### 2") == found.vote("another way #### 2") == "2"


def test_a_json_schema() -> None:
    found = build({"type": "json_schema", "definition": SCHEMA})
    assert found.problem('{"n": 1}') is None
    assert found.problem('{"n": "1"}') == "$.n: '1' is not of type 'integer'"
    assert (found.problem("{n: 1}") or "").startswith("no JSON: ")
    assert found.vote('{"n": 1, "a": 2}') == found.vote('{"a":2,"n":1}')
    assert found.vote("no JSON") == "no JSON"
    with pytest.raises(RecipeError, match=r"synthesis.format.definition: this is no JSON schema"):
        build({"type": "json_schema", "definition": {"type": "thing"}})


def test_labels_come_from_the_recipe_a_file_or_the_seeds(tmp_path: Path) -> None:
    assert build({"type": "labels"}).problem(" blue\n") is None
    assert build({"type": "labels"}).problem("Blue") == "not a label of the set"
    assert build({"type": "labels", "labels": ["green"]}).problem("blue") is not None
    (tmp_path / "labels.json").write_text(json.dumps(["green", "blue"]))
    assert build({"type": "labels", "file": "labels.json"}, base_dir=tmp_path).problem("green") is None
    assert build({"type": "labels", "file": "labels.json"}, base_dir=tmp_path).vote(" green ") == "green"


@pytest.mark.parametrize("content", [None, "[", "{}", "[]", "[1]"])
def test_a_label_file_that_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "labels.json").write_text(content)
    with pytest.raises(DataError, match=r"synthesis.format.file=labels.json"):
        build({"type": "labels", "file": "labels.json"}, base_dir=tmp_path)


def test_a_predicate_decides() -> None:
    found = build({"type": "predicate"}, predicate=str.isupper)
    assert found.problem("YES") is None
    assert found.problem("yes") == "refused by the predicate"
    with pytest.raises(RecipeError, match=r"synthesis.format.type=predicate: the function comes from Python"):
        build({"type": "predicate"})


def test_a_broken_pattern_is_refused_with_the_recipe() -> None:
    with pytest.raises(ValidationError, match="is not a regular expression"):
        build({"type": "regex", "pattern": "("})
