"""Scores of generated answers in the run's page, and in the card that goes with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_run import result

from stillhouse.report.card import write_card
from stillhouse.report.scores import score_table

MODELS = [("student_before", "student before"), ("student_after", "student after"), ("teacher", "teacher")]


@pytest.fixture
def scored() -> dict[str, Any]:
    value = result("kd", ("a", "b", "c", "d", "e", "f"), teacher=True)
    evaluation = value["evaluation"]
    evaluation["student_before"]["scores"] = {"rouge_l": {"score": 0.1, "n": 40, "interval": [0.05, 0.15]}}
    evaluation["student_after"]["scores"] = {
        "rouge_l": {"score": 0.42, "n": 40, "interval": [0.3, 0.5]},
        "home_made": {"score": 1.0, "n": 3, "interval": [1.0, 1.0]},
    }
    return value


def test_every_score_of_every_model_with_its_interval(scored: dict[str, Any]) -> None:
    table = score_table(scored, MODELS)
    assert table is not None
    assert table.columns == ("Score", "Items", "Student before", "Student after", "Teacher")
    assert table.rows == (
        ("ROUGE-L F1", "40", "0.100\n0.050 to 0.150", "0.420\n0.300 to 0.500", "–"),
        ("home_made", "3", "–", "1.000\n1.000 to 1.000", "–"),
    )


def test_without_scores_there_is_no_table() -> None:
    assert score_table(None, MODELS) is None
    assert score_table(result("sft", ("a", "b", "c", "d", "e", "f"), teacher=False), MODELS) is None


def test_the_card_has_them(scored: dict[str, Any], tmp_path: Path) -> None:
    text = write_card(tmp_path, scored).read_text(encoding="utf-8")
    (line,) = (x for x in text.splitlines() if x.startswith("| ROUGE-L F1 |"))
    assert sorted(line.split("|")[2:-1]) == [" 0.100 (40 items) ", " 0.420 (40 items) ", " – "]
