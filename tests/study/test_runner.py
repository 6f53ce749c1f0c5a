"""A grid of tiny runs: done once, resumed after any kill, failures told apart."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_study import Recorder, WriteStudy, config_of

from stillhouse.study.grid import plan_study
from stillhouse.study.runner import StudyOutcome, run_study

StartStudy = Callable[..., "subprocess.Popen[str]"]


def run(path: Path, view: Recorder | None = None, **options: Any) -> StudyOutcome:
    plan = plan_study(config_of(path), path.parent, where=path.name)
    return run_study(plan, base_dir=path.parent, view=view or Recorder(), **options)


def test_a_study_runs_every_cell_once_and_never_again(write_study: WriteStudy, tmp_path: Path) -> None:
    path, view = write_study(), Recorder()
    outcome = run(path, view)
    names = ["runs/kd-seed0", "runs/sft-seed0", "runs/kd-seed1", "runs/sft-seed1"]
    assert view.started_runs == names
    assert view.ended_runs == [(name, "done") for name in names]
    assert not outcome.interrupted
    assert json.loads((tmp_path / "study" / "study_result.json").read_text()) == outcome.result
    rows = outcome.result["rows"]
    assert [(row["labels"], row["seed"], row["status"]) for row in rows] == [
        ({"method": method}, seed, "done") for seed in (0, 1) for method in ("kd", "sft")
    ]
    again = Recorder()
    assert run(path, again).result == outcome.result
    assert again.started_runs == []
