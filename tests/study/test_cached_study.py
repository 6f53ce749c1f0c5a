"""Many students of one study read one cache, and the teacher scores each document once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_study import Recorder, WriteStudy, config_of

from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.study.captures import capture_key
from stillhouse.study.grid import plan_study
from stillhouse.study.runner import run_study
from stillhouse.targets.maintenance import info


def captured(log: Path) -> list[int]:
    return [int(n) for n in re.findall(r"^(\d+) documents with", log.read_text(), flags=re.MULTILINE)]


@pytest.mark.slow
def test_ten_students_pay_the_teacher_once(
    write_study: WriteStudy, base_data: dict[str, Any], tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    cache = {"dir": str(tmp_path / "targets"), "codec": {"type": "sampled", "draws": 20}}
    base_data["teacher"] = {"path": str(tiny_teacher_dir), "source": "cache", "cache": cache}
    path = write_study(
        train={"steps": 2},
        seeds=[0, 1, 2, 3, 4],
        axes={"size": {"8": {"data.train.*.limit": 8}, "all": {}}},
    )
    plan = plan_study(config_of(path), path.parent, where=path.name)
    assert len(plan.runs) == 10
    outcome = run_study(plan, base_dir=path.parent, view=Recorder())
    assert outcome.num_failed == 0
    documents = info(tmp_path / "targets")["documents"]
    assert sum(captured(tmp_path / "study" / "capture.log")) == documents
    sizes = [row["result"]["train_rows"] for row in outcome.result["rows"]]
    assert max(sizes) <= documents < sum(sizes)  # every seed holds out other rows
    # No run had the teacher beside it, and the passes of all are those over the cached documents.
    assert {row["result"]["flops"]["teacher"] for row in outcome.result["rows"]} == {0}


def test_stages_that_ask_no_teacher_are_no_part_of_what_is_captured(base_data: dict[str, Any]) -> None:
    cached = {"path": "teacher", "source": "cache", "cache": {"dir": "targets"}}
    stage = base_data["stages"][0]
    sft = {**stage, "name": "warm", "objective": {"type": "sft"}}
    own = {"train": [{"path": "other.jsonl"}]}

    def key(*stages: dict[str, Any], **more: Any) -> str | None:
        return capture_key(recipe_from_mapping({**base_data, "teacher": cached, "stages": list(stages), **more}))

    assert key(sft) is None
    assert capture_key(recipe_from_mapping(base_data)) is None
    assert key(stage) == key({**stage, "name": "warm"}) == key(sft, {**stage, "name": "last"})
    # The same files, but the teacher is asked about the stage's own rows in one of them.
    asked = {**stage, "name": "own", "data": own}
    assert key({**sft, "data": own}, stage) != key(asked, stage)
    assert key(stage, seed=7) != key(stage)


@pytest.mark.slow
def test_the_targets_of_a_prepared_teacher_are_captured_when_it_is_there(
    write_study: WriteStudy, base_data: dict[str, Any], tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    tuned = "{output}/prepare/teacher-seed{seed}/model"
    cache = {"dir": str(tmp_path / "targets-{seed}"), "codec": {"type": "sampled", "draws": 20}}
    path = write_study(
        train={"steps": 2},
        seeds=[0],
        output=str(tmp_path / "study"),
        prepare={"teacher": {"student.path": str(tiny_teacher_dir), "stages.0.objective": {"type": "sft"}}},
        axes={"method": {"kd": {"teacher": {"path": tuned, "source": "cache", "cache": cache}}}},
    )
    plan = plan_study(config_of(path), path.parent, where=path.name)
    view = Recorder()
    outcome = run_study(plan, base_dir=path.parent, view=view)
    assert [row["status"] for row in outcome.result["rows"]] == ["done"], view.said
    assert sum("capturing" in line for line in view.said) == 1
