"""What rows carry for checks, in the forms of public benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.checkable import NO_CHECKS, Checks, CodeTest, Instruction, parse_checks
from stillhouse.data.sources import load_rows
from stillhouse.errors import DataError
from stillhouse.recipe import SourceConfig


def test_choices_and_references_are_lists_of_strings() -> None:
    assert parse_checks({"choices": ["a", "b"], "references": ["x"]}, "f:1") == Checks(("a", "b"), ("x",))
    other: list[dict[str, Any]] = [{"choices": {"text": ["a"]}}, {"choices": [1, 2]}, {"references": "one"}, {}]
    assert all(parse_checks(record, "f:1") == NO_CHECKS for record in other)
    assert parse_checks({"choices": ["a", "\ud83d"]}, "f:1").choices == ()


def test_instructions_with_and_without_nulls() -> None:
    record = {
        "instruction_id_list": ["keywords:existence", "punctuation:no_comma"],
        "kwargs": [{"keywords": ["a", "b"], "num_words": None}, None],
    }
    found = parse_checks(record, "f:1").instructions
    assert found == (
        Instruction("keywords:existence", (("keywords", ("a", "b")),)),
        Instruction("punctuation:no_comma"),
    )
    number = {"instruction_id_list": ["x"], "kwargs": [{"n": 3.0, "relation": "at least"}]}
    assert parse_checks(number, "f:1").instructions[0].arguments == (("n", 3), ("relation", "at least"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction_id_list": ["a"]}, r"f:3: 'instruction_id_list' and 'kwargs' must be lists of the same length"),
        ({"instruction_id_list": ["a"], "kwargs": []}, "same length"),
        ({"instruction_id_list": "a", "kwargs": [{}]}, "same length"),
        ({"instruction_id_list": ["a"], "kwargs": [{"x": {"y": 1}}]}, r"f:3: an argument in 'kwargs' is \{'y': 1\}"),
        ({"instruction_id_list": ["a"], "kwargs": ["x"]}, "same length"),
    ],
)
def test_malformed_instructions(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_checks(record, "f:3")


def test_tests_of_code() -> None:
    mbpp = {"test_list": ["assert f(1)", "assert f(2)"], "test_setup_code": "import re"}
    assert parse_checks(mbpp, "f:1").code == CodeTest("assert f(1)\nassert f(2)", setup="import re")
    humaneval = {"test": "def check(f): pass", "entry_point": "g", "prompt": "def g():\n"}
    assert parse_checks(humaneval, "f:1").code == CodeTest(
        "def check(f): pass\n\ncheck(g)", prompt="def g():\n", entry_point="g"
    )
    assert parse_checks({**humaneval, "entry_point": "g(); import os"}, "f:1").code is None
    assert parse_checks({"test": "a unit test somebody wrote"}, "f:1") == NO_CHECKS


VALUES = [None, 0, "", "text", [], ["a"], ["a", 1], [None], [["a"]], {}, {"text": ["a"]}, True, 1.5]


@given(st.dictionaries(st.sampled_from(["choices", "references", "test", "test_list"]), st.sampled_from(VALUES)))
def test_other_uses_of_the_names_never_stop_a_file(record: dict[str, Any]) -> None:
    found = parse_checks(record, "f:1")
    assert found.choices == (("a",) if record.get("choices") == ["a"] else ())
    assert found.references == (("a",) if record.get("references") == ["a"] else ())


def test_rows_carry_them_from_both_kinds_of_files(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "A"}]
    record = {"messages": turns, "answer": "A", "choices": ["x", "y"], "unrelated": 1}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record) + "\n")
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        (row,) = load_rows([SourceConfig(path=name)], seed=0, base_dir=tmp_path)
        assert row.checks == Checks(choices=("x", "y"))
        assert len({row, row}) == 1, "rows stay hashable"
