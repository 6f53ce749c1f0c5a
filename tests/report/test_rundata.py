"""Reading run directories, also damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.errors import OutputError
from stillhouse.report.rundata import read_run


def test_a_finished_run(make_run: Callable[..., Path]) -> None:
    run = read_run(make_run())
    assert (run.name, run.objective, len(run.steps)) == ("kd", "kd", 62)
    # 0, then every 8th of 62 steps (7 of them), then the last.
    assert [event["step"] for event in run.evaluations] == [0, 8, 16, 24, 32, 40, 48, 56, 62]
    assert run.result is not None
    assert run.notes == ()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"recipe\.yaml is missing"):
        read_run(tmp_path)


def test_a_last_line_cut_by_a_crash_is_noted(make_run: Callable[..., Path]) -> None:
    folder = make_run(finished=False)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "st')
    run = read_run(folder)
    assert len(run.steps) == 20
    assert run.notes == ("The last line of metrics.jsonl is cut off and was left out.",)


def test_a_damaged_line_in_the_middle_is_refused_by_number(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines[2] = "oops"
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(OutputError, match=r"metrics\.jsonl:3: not a JSON line"):
        read_run(folder)


def test_a_step_that_was_repeated_after_resuming_counts_once(make_run: Callable[..., Path]) -> None:
    folder = make_run(finished=False)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "step", "stage": "main", "step": 20, "loss": 9.5}) + "\n")
    steps = read_run(folder).steps
    assert len(steps) == 20
    assert steps[-1]["loss"] == 9.5


def test_a_run_that_wrote_no_metrics_yet(make_run: Callable[..., Path]) -> None:
    folder = make_run(finished=False)
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert run.steps == []
    assert run.notes == ("metrics.jsonl is missing, so there are no curves.",)
