"""A grid of tiny runs: done once, resumed after any kill, failures told apart."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_study import Recorder, WriteStudy, config_of, without_times

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


def kill_when(process: subprocess.Popen[str], reached: Callable[[], bool], *, seconds: float = 90.0) -> None:
    """SIGKILL the process as soon as ``reached``; fails when it ends by itself before."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    process.kill()
    process.wait()


def steps_of(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count('"event": "step"') if path.exists() else 0


def test_killed_twice_and_resumed_gives_the_same_result(
    write_study: WriteStudy, start_study: StartStudy, tmp_path: Path
) -> None:
    whole = run(write_study("whole")).result
    path, runs = write_study("killed"), tmp_path / "killed" / "runs"
    # In the middle of the first run, then between the start of the second and its end.
    kill_when(start_study(path), lambda: steps_of(runs / "kd-seed0") >= 3)
    kill_when(start_study(path), lambda: (runs / "sft-seed0" / "recipe.yaml").exists())
    assert not (runs / "sft-seed0" / "result.json").exists()
    view = Recorder()
    resumed = run(path, view).result
    assert "runs/kd-seed0" not in view.started_runs
    assert without_times(resumed) == without_times(whole)
    steps = [json.loads(line) for line in (runs / "kd-seed0" / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in steps if e["event"] == "step"] == [1, 2, 3, 4, 5, 6]
