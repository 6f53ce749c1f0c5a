"""What ``stillhouse init`` learns about a path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.data.inspect import inspect_source
from stillhouse.errors import DataError


def test_chat_file_is_described(chat_jsonl: Path) -> None:
    found = inspect_source(chat_jsonl.name, base_dir=chat_jsonl.parent)
    assert found.files == (chat_jsonl,)
    assert (found.format, found.num_rows, found.has_answers, found.num_answers) == ("messages", 31, True, 31)
    assert list(found.domains.items()) == [("math", 20), ("spelling", 6), ("greetings", 5)]
    assert found.columns == ("id", "domain", "messages", "answer")
    assert found.headline() == "31 chat conversations in 3 domains from chat.jsonl"
    assert "domains: math 20, spelling 6, greetings 5" in found.describe()


def test_lengths_are_characters_of_all_contents(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * n, "completion": "yy"} for n in range(1, 102)]  # 3 ... 103 characters
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = inspect_source("p.jsonl", base_dir=tmp_path)
    assert (found.characters_median, found.characters_p95, found.characters_longest) == (53, 98, 103)
    assert (found.format, found.has_answers, found.domains) == ("prompt_completion", False, {"p": 101})
    assert found.headline() == "101 prompts with completions in 1 domain from p.jsonl"


def test_malformed_rows_are_errors_already_here(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(DataError, match=r"t.jsonl:2: 'text' is the number 1"):
        inspect_source("t.jsonl", base_dir=tmp_path)


def test_looking_at_data_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "datasets")
    code = f"import stillhouse.data.inspect, sys; print(any(name in sys.modules for name in {heavy}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
