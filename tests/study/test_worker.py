"""What a worker does with a task: its report, its log, and what it does with what nobody expected."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import stillhouse.training.run as run_module
from stillhouse.errors import DataError
from stillhouse.run_directory import RunDirectory
from stillhouse.study.task import Report, Task
from stillhouse.study.worker import perform
from stillhouse.training.loop import LoopState
from stillhouse.training.run import RunOutcome


@pytest.fixture
def task(base_data: dict[str, Any], tmp_path: Path) -> Task:
    """A task whose training is replaced by the tests."""
    return Task("runs/a-seed0", "train", base_data, str(tmp_path), str(tmp_path / "log.txt"))


def test_tasks_and_reports_survive_the_wire(task: Task) -> None:
    assert Task.from_line(task.to_line()) == task
    report = Report("runs/a-seed0", "failed", "line one\nline two", 1.5)
    assert "\n" not in report.to_line()
    assert Report.from_line(report.to_line()) == report


def test_whatever_is_printed_goes_to_the_log_and_nowhere_after(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def train(recipe: Any, *, base_dir: Path, console: Any) -> None:
        console.print("from the console")
        os.write(1, b"from C\n")
        raise DataError("data.jsonl:3: malformed")

    monkeypatch.setattr(run_module, "train", train)
    report = perform(task)
    assert (report.status, report.error) == ("failed", "data.jsonl:3: malformed")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert sorted(lines) == ["error: data.jsonl:3: malformed", "from C", "from the console"]
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"


def test_what_nobody_expected_leaves_a_traceback_and_ends_the_worker(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(recipe: Any, *, base_dir: Path, console: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(run_module, "train", train)
    # pytest replaces sys.stderr; a worker's is the file descriptor that the log takes over.
    with os.fdopen(2, "w", closefd=False) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(ZeroDivisionError, match="ours"):
            perform(task)
    assert "ZeroDivisionError: ours" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("keep", [False, True])
def test_checkpoints_of_a_finished_run_go_unless_they_are_kept(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "main").mkdir(parents=True)

    def train(recipe: Any, *, base_dir: Path, console: Any) -> RunOutcome:
        return RunOutcome(RunDirectory(run).path, LoopState(stopped_because=ended), {})

    monkeypatch.setattr(run_module, "train", train)
    task = dataclasses.replace(task, keep_checkpoints=keep)
    ended = "interrupted"
    assert perform(task).status == "interrupted"
    assert (run / "checkpoints").is_dir()
    ended = "budget"
    assert perform(task).status == "done"
    assert (run / "checkpoints").is_dir() == keep


def test_a_signal_outside_training_interrupts_the_task(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(recipe: Any, *, base_dir: Path, console: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "train", train)
    assert perform(task).status == "interrupted"
