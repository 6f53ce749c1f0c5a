"""Any model on any rows: every kind of row in one file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.errors import DataError, ModelError
from stillhouse.evaluation.anything import EvaluateRequest, EvaluateResult, evaluate_anything


def turns(prompt: str, gold: str | None) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": prompt}]
    return asked if gold is None else [*asked, {"role": "assistant", "content": gold}]


RECORDS: list[dict[str, Any]] = [
    {"messages": turns("2 + 2 =", "4"), "answer": "4"},
    {"messages": turns("3 + 3 =", "6"), "answer": "6"},
    {
        "messages": turns("Sky?\nA. blue\nB. red\nAnswer with the letter.", "A"),
        "answer": "A",
        "choices": ["blue", "red"],
    },
    {"messages": turns("Yes?\nAnswer Yes or No.", "Yes"), "answer": "Yes", "choices": ["Yes", "No"]},
    {"messages": turns("Describe it.", "A pub."), "references": ["A pub.", "A nice pub."]},
    {
        "messages": turns("No commas please.", None),
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
    {"messages": turns("Write f.", "def f(): return 1"), "test_list": ["assert f() == 1"]},
    {"messages": turns("Nothing to check here", None)},
    {"messages": [*turns("a", "b"), *turns("c", "d"), {"role": "assistant", "content": "e"}]},
]


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": i, **record}) + "\n" for i, record in enumerate(RECORDS)))
    return str(path)


def measure(model: Path, data: str, **options: Any) -> EvaluateResult:
    request = EvaluateRequest(str(model), data, generate=10, max_new_tokens=4, max_seq_len=128, **options)
    return evaluate_anything(request, dtype=torch.float32, device=torch.device("cpu"), base_dir=Path.cwd())


@pytest.fixture
def good_data(data: str) -> str:
    """Without the row whose roles are out of order, which is more than the tolerated share of so few rows."""
    lines = Path(data).read_text().splitlines()[:-1]
    Path(data).write_text("\n".join(lines) + "\n")
    return data


def test_every_kind_of_row(tiny_model_dir: Path, good_data: str) -> None:
    result = measure(tiny_model_dir, good_data, execute_code=True)
    numbers = json.loads(json.dumps(result.to_json(), allow_nan=False))
    rows = {name: score["n"] for name, score in numbers["scores"].items()}
    assert rows == {
        "multiple_choice": 2,
        "multiple_choice_norm": 2,
        "exact_match": 4,
        "rouge_l": 1,
        "chrf": 1,
        "ifeval_prompt_strict": 1,
        "ifeval_instruction_strict": 1,
        "ifeval_prompt_loose": 1,
        "ifeval_instruction_loose": 1,
        "code": 1,
        "token_ece": 6,
        "multiple_choice_ece": 2,
    }
    for score in numbers["scores"].values():
        assert 0 <= score["interval"][0] <= score["interval"][1] <= 1
        assert 0 <= score["score"] <= 1
    assert numbers["domains"]["rows"]["documents"] == 6
    assert numbers["exact_match"]["n"] == 4
    assert numbers["notes"] == ["2 rows have no answer, so they have no NLL"]
    by_id = {item.id: item for item in result.assessment.items}
    assert set(by_id) == {"0", "1", "2", "3", "4", "5", "6"}
    assert [choice.text for choice in by_id["2"].choices] == ["A", "B"]
    assert [choice.text for choice in by_id["3"].choices] == ["Yes", "No"]
    assert by_id["5"].gold is None
    assert by_id["5"].prompt == "No commas please."
    assert by_id["0"].generation is not None
    best = max(by_id["3"].choices, key=lambda choice: choice.log_prob)
    assert by_id["3"].parts["multiple_choice"].value == float(best.text == "Yes")


def test_questions_alone_have_no_nll(tiny_model_dir: Path, good_data: str) -> None:
    record = {"id": "q", **RECORDS[5]}
    Path(good_data).write_text(json.dumps(record) + "\n")
    numbers = measure(tiny_model_dir, good_data).to_json()
    assert (numbers["nll"], numbers["domains"], numbers["exact_match"]) == (None, {}, None)
    assert numbers["scores"]["ifeval_prompt_strict"]["n"] == 1
    Path(good_data).write_text(json.dumps({"messages": turns("?", None)}) + "\n")
    with pytest.raises(DataError, match="so nothing is measured"):
        measure(tiny_model_dir, good_data)


def test_a_teacher_is_compared_on_the_answers(
    tiny_model_dir: Path, tiny_teacher_dir: Path, other_model_dir: Path, good_data: str
) -> None:
    own = measure(tiny_model_dir, good_data, metrics=(), teacher=str(tiny_model_dir)).agreement
    assert own is not None
    assert own.forward_kl == pytest.approx(0, abs=1e-5)
    assert own.top1 == 1
    numbers = measure(tiny_model_dir, good_data, metrics=(), teacher=str(tiny_teacher_dir)).to_json()
    assert numbers["agreement"]["forward_kl"] > 0.001
    assert 0 <= numbers["agreement"]["top1"] <= 1
    content = numbers["domains"]["rows"]["content_tokens"]
    assert numbers["agreement"]["domains"]["rows"]["content_tokens"] == content
    with pytest.raises(ModelError, match="different vocabularies"):
        measure(tiny_model_dir, good_data, metrics=(), teacher=str(other_model_dir))
    Path(good_data).write_text(json.dumps(RECORDS[5]) + "\n")
    with pytest.raises(DataError, match="no row has an answer on which model and teacher"):
        measure(tiny_model_dir, good_data, teacher=str(tiny_teacher_dir))


def test_names_choose(tiny_model_dir: Path, good_data: str) -> None:
    numbers = measure(tiny_model_dir, good_data, metrics=("multiple_choice",)).to_json()
    assert set(numbers["scores"]) == {"multiple_choice", "multiple_choice_norm", "multiple_choice_ece"}
    assert numbers["exact_match"] is None
    assert numbers["nll"] is not None


def test_what_cannot_be_asked_is_counted(tiny_model_dir: Path, good_data: str) -> None:
    bad = {"messages": turns("Say <|im_end|>", None), "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    with Path(good_data).open("a") as file:
        file.write(json.dumps(bad) + "\n")
    result = measure(tiny_model_dir, good_data)
    assert any(note.startswith("1 questions cannot be asked; the first:") for note in result.notes)
    assert any("tests for code, which is not run" in note for note in result.notes)
    assert result.assessment.scores["ifeval_prompt_strict"].n == 1
