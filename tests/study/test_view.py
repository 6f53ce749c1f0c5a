"""What a person sees: the announcement, the counts, the progress of a run, the time left."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from stillhouse.study.config import StudyConfig
from stillhouse.study.estimate import Durations
from stillhouse.study.grid import Plan, plan_study
from stillhouse.study.state import RunState
from stillhouse.study.view import (
    LiveView,
    PlainView,
    Status,
    announcement,
    describe_progress,
    duration,
    open_view,
    summary,
)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Four runs: two sizes by two seeds."""
    base = {
        "student": {"path": "s"},
        "data": {"train": [{"path": "d.jsonl"}], "validation": [{"path": "v.jsonl"}]},
        "stages": [{"objective": {"type": "sft"}}],
        "output": {"dir": "o"},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    sizes = {"10": {"data.train.*.limit": 10}, "20": {"data.train.*.limit": 20}}
    data = {"name": "tiny", "base": "base.yaml", "output": "out", "axes": {"size": sizes}, "seeds": [0, 1]}
    return plan_study(StudyConfig.from_mapping(data), tmp_path)


def states_of(plan: Plan, *states: RunState) -> dict[str, RunState]:
    return dict(zip(plan.runs, states, strict=True))


def test_unknown_runs_last_as_long_as_those_with_the_most_equal_labels(plan: Plan) -> None:
    states = states_of(plan, RunState("done", seconds=100), RunState("done", seconds=300), RunState(), RunState())
    found = Durations.of_finished(plan, states)
    assert [found.seconds(name) for name in plan.runs] == [100, 300, 100, 300]
    assert found.total(list(plan.runs)) == 800
    # Only size 10 is known: size 20 is guessed from it.
    states["runs/20-seed0"].status = "failed"
    assert Durations.of_finished(plan, states).seconds("runs/20-seed1") == 100
    none = Durations.of_finished(plan, states_of(plan, *(RunState() for _ in range(4))))
    assert not none
    assert none.total(list(plan.runs)) is None


def test_the_announcement_has_counts_time_and_old_failures(plan: Plan) -> None:
    states = states_of(
        plan, RunState("done", seconds=120), RunState("failed", error="no such file"), RunState(), RunState()
    )
    lines = announcement(plan, states, Durations.of_finished(plan, states))
    assert lines[0] == "tiny: 4 cells; 1 runs done, 1 failed, 2 to do"
    assert lines[1] == "2 runs x 2 min (measured on finished runs), 1 at a time: about 4 min"
    assert lines[2] == "failed before, and left alone without --retry-failed: runs/20-seed0: no such file"
    guessed = Durations({n: r.cell for n, r in plan.runs.items()}, {"runs/10-seed0": 5.0}, False)
    fresh = states_of(plan, *(RunState() for _ in range(4)))
    assert announcement(plan, fresh, guessed)[1] == "4 runs x 5 s (estimated, training alone), 1 at a time: about 20 s"
    unknown = announcement(plan, fresh, Durations.of_finished(plan, fresh))[1]
    assert unknown == "4 runs, and no measure yet of how long they take"


def test_the_summary_takes_off_what_the_running_ones_have_spent(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    states = states_of(
        plan, RunState("done", seconds=100), RunState("done", seconds=300), RunState("running"), RunState()
    )
    status = Status(Path("out"), states, Durations.of_finished(plan, states), jobs=2)
    monkeypatch.setattr("time.monotonic", lambda: 1040.0)
    # 100 - 40 s of the running one and 300 s of the last, on two workers
    found = summary(status, {"runs/10-seed1": 1000.0})
    assert found == "2 done, 1 running, 0 failed, 1 left, about 3 min to go"


def write_metrics(folder: Path, *events: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_progress_is_the_last_step_whatever_comes_after(tmp_path: Path) -> None:
    assert describe_progress(tmp_path) == ""
    step = {"event": "step", "stage": "main", "step": 7, "loss": 1.23456, "padding": "x" * 3000}
    later = {"event": "evaluation", "stage": "main", "step": 7}
    write_metrics(tmp_path, {**step, "step": 5}, {**step, "step": 6}, step, later)
    assert describe_progress(tmp_path) == "main step 7, loss 1.235"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "stage": "ma')  # still being written
    assert describe_progress(tmp_path) == "main step 7, loss 1.235"
    write_metrics(tmp_path, {**step, "loss": None})
    assert describe_progress(tmp_path) == "main step 7"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_durations_read_easily(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_lines_say_what_started_and_how_it_ended(plan: Plan) -> None:
    out = io.StringIO()
    view = open_view(Console(file=out, width=80))
    assert isinstance(view, PlainView)
    assert not isinstance(view, LiveView)
    with view:
        for name, state, nll in (
            ("a", RunState("done"), 1.5),
            ("b", RunState("failed", error="[bold] went wrong"), None),
            ("c", RunState("pending"), None),
        ):
            view.started(name)
            view.ended(name, state, nll)
        view.show(Status(Path("out"), {}, Durations({}, {}, True), 1))  # too soon for another line
    lines = out.getvalue().splitlines()
    assert lines == [
        "start   a", "done    a: NLL 1.5000 in 0 s", "start   b", "failed  b: [bold] went wrong", "start   c", "stopped c",
    ]  # fmt: skip


def test_the_live_table_shows_running_and_failed_runs(plan: Plan, tmp_path: Path) -> None:
    names = list(plan.runs)
    error = "[red]data.jsonl:3: malformed\nmore"
    states = states_of(
        plan, RunState("done", seconds=90), RunState("running"), RunState("failed", error=error), RunState()
    )
    write_metrics(tmp_path / names[1], {"event": "step", "stage": "main", "step": 3, "loss": 2.0})
    out = io.StringIO()
    view = open_view(Console(file=out, width=140, force_terminal=True, color_system=None))
    assert isinstance(view, LiveView)
    with view:
        view.started(names[1])
        view.show(Status(tmp_path, states, Durations.of_finished(plan, states), jobs=1))
    text = out.getvalue()
    for part in (
        "1 done, 1 running, 1 failed, 1 left",
        "main step 3, loss 2.000",
        "[red]data.jsonl:3: malformed",
        "90 s",
    ):
        assert part in text
    assert "more" not in text
