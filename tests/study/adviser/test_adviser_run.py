"""The adviser as a whole on tiny models (study/adviser/advise.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_study import Recorder

from stillhouse.errors import OutputError, RecipeError
from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.study.adviser.advise import PilotOptions, advise
from stillhouse.study.runner import StudyOutcome


def test_measuring_alone_is_done_once_and_says_what_it_cannot_tell(base_data: dict[str, Any], tmp_path: Path) -> None:
    recipe, view = recipe_from_mapping(base_data), Recorder()
    first = advise(recipe, base_dir=tmp_path, folder=Path("advice"), view=view, options=None)
    assert first.advice is not None
    assert first.advice.choice.verdict == "cannot_tell"
    saved = json.loads((tmp_path / "advice" / "advice.json").read_text())
    assert saved["pilot"] is None
    assert saved["measurement"]["macro"]["teacher_nll"] == pytest.approx(first.looked.measurement.macro("teacher_nll"))
    assert first.looked.amount.rows == 31
    assert len((tmp_path / "advice" / "held_out.messages.jsonl").read_text().splitlines()) == 31 - saved["full_rows"]
    again = advise(recipe, base_dir=tmp_path, folder=Path("advice"), view=view, options=None)
    assert again.looked == first.looked
    assert "measured already" in view.said


def test_another_recipe_does_not_mix_with_what_was_measured(base_data: dict[str, Any], tmp_path: Path) -> None:
    advise(recipe_from_mapping(base_data), base_dir=tmp_path, folder=Path("a"), view=Recorder(), options=None)
    base_data["data"]["max_seq_len"] = 32
    with pytest.raises((RecipeError, OutputError), match=r"data\.max_seq_len"):
        advise(recipe_from_mapping(base_data), base_dir=tmp_path, folder=Path("a"), view=Recorder(), options=None)


def test_a_teacher_with_another_tokenizer_is_refused_before_anything_is_measured(
    base_data: dict[str, Any], other_model_dir: Path, tmp_path: Path
) -> None:
    base_data["teacher"] = {"path": str(other_model_dir)}
    base_data["stages"][0]["objective"] = {"type": "cross_tokenizer"}
    with pytest.raises(RecipeError, match=r"teacher\.path=.*: the adviser compares teacher and student token by token"):
        advise(recipe_from_mapping(base_data), base_dir=tmp_path, folder=Path("a"), view=Recorder(), options=None)
    assert not (tmp_path / "a").exists()


def test_a_teacher_is_needed(base_data: dict[str, Any], tmp_path: Path) -> None:
    del base_data["teacher"]
    base_data["stages"][0]["objective"] = {"type": "sft"}
    with pytest.raises(RecipeError, match="teacher: the adviser"):
        advise(recipe_from_mapping(base_data), base_dir=tmp_path, folder=Path("a"), view=Recorder(), options=None)


def test_an_interrupted_pilot_gives_no_advice_and_a_failed_one_says_so(
    base_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [{"size": size, "method": method} for size in ("8", "16") for method in ("sft", "kd")]
    rows = [{"labels": x, "seed": 0, "status": "failed", "run": "r", "error": "no", "result": None} for x in labels]
    result = {"name": "x", "axes": {"size": ["8", "16"], "method": ["sft", "kd"]}, "seeds": [0], "rows": rows}
    options = PilotOptions(sizes=(8, 16), seeds=(0,))
    for interrupted in (True, False):
        stand_in = StudyOutcome(tmp_path, result, num_failed=4, interrupted=interrupted)
        monkeypatch.setattr("stillhouse.study.adviser.advise.run_study", lambda *_, outcome=stand_in, **__: outcome)
        outcome = advise(
            recipe_from_mapping(base_data), base_dir=tmp_path, folder=Path("a"), view=Recorder(), options=options
        )
        assert (outcome.advice is None) == interrupted
        assert (tmp_path / "a" / "advice.json").exists() != interrupted
    assert outcome.advice is not None
    assert outcome.num_failed == 4
    assert outcome.advice.choice.verdict == "cannot_tell"
    assert any("4 pilot runs are missing (4 failed)" in note for note in outcome.advice.cannot_tell)


@pytest.mark.slow
def test_pilot_of_a_pruned_student_is_run_once_and_advised_on(base_data: dict[str, Any], tmp_path: Path) -> None:
    base_data["student"] = {"type": "pruned", "depth": {"layers": 1, "method": "even"}, "calibration_documents": 4}
    base_data["stages"][0]["optimisation"]["budget"] = {"epochs": 2}
    recipe, view = recipe_from_mapping(base_data), Recorder()
    options = PilotOptions(sizes=(8, 16), seeds=(0, 1))
    outcome = advise(recipe, base_dir=tmp_path, folder=Path("advice"), view=view, options=options)
    assert outcome.advice is not None
    assert outcome.num_failed == 0
    assert len(view.ended_runs) == 8
    result = json.loads((tmp_path / "advice" / "pilot" / "study_result.json").read_text())
    # One pruned student, one set of held-out rows: every run starts from the same number.
    assert len({row["result"]["before_nll"] for row in result["rows"]}) == 1
    for row in result["rows"]:
        assert row["result"]["train_rows"] <= int(row["labels"]["size"])
    prediction = outcome.advice.choice.prediction
    assert prediction is not None
    assert prediction.rows == outcome.looked.amount.documents
    again = Recorder()
    repeated = advise(recipe, base_dir=tmp_path, folder=Path("advice"), view=again, options=options)
    assert repeated.advice == outcome.advice
    assert again.ended_runs == []
