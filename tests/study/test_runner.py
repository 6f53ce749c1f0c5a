"""A grid of tiny runs: done once, resumed after any kill, failures told apart and tried again on request."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_study import SFT, Recorder, WriteStudy, config_of, without_times

from stillhouse.errors import OutputError
from stillhouse.study.grid import plan_study
from stillhouse.study.runner import StudyOutcome, run_study
from stillhouse.study.state import StudyLock, open_run, read_states
from stillhouse.study.view import Status

StartStudy = Callable[..., "subprocess.Popen[str]"]


def run(path: Path, view: Recorder | None = None, **options: Any) -> StudyOutcome:
    plan = plan_study(config_of(path), path.parent, where=path.name)
    return run_study(plan, base_dir=path.parent, view=view or Recorder(), **options)


def steps_of(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count('"event": "step"') if path.exists() else 0


class Saboteur(Recorder):
    """Does something once, when a run has so many steps."""

    def __init__(self, run_name: str, steps: int, act: Callable[[], None]) -> None:
        super().__init__()
        self._run, self._steps, self._act = run_name, steps, act
        self.acted = False

    def show(self, status: Status) -> None:
        if (
            not self.acted
            and self._run in status.names("running")
            and steps_of(status.folder / self._run) >= self._steps
        ):
            self.acted = True
            self._act()


def end_workers() -> None:
    """What the system does to a process that eats all memory."""
    for child in psutil.Process().children():
        if "stillhouse.study.worker" in child.cmdline():
            child.kill()


def says_what_was_measured(found: dict[str, Any], run_dir: Path) -> None:
    written = json.loads((run_dir / "result.json").read_text())
    assert found["nll"] == written["headline"]["student_after"]
    assert found["before_nll"] == written["headline"]["student_before"]
    assert set(found["domains"]) == {"greetings", "math", "spelling"}
    for name, ratio in found["perplexity_ratio"].items():
        evaluation = written["evaluation"]
        perplexity = [evaluation[m]["domains"][name]["perplexity"] for m in ("student_after", "teacher")]
        assert ratio == pytest.approx(perplexity[0] / perplexity[1])
    tokens, sizes = written["training"]["tokens"], written["parameters"]
    assert found["flops"]["student"] == 6 * sizes["student"] * tokens
    assert found["flops"]["teacher"] == 2 * sizes["teacher"] * tokens
    assert found["train_rows"] == written["data"]["train"]["documents"]
    assert 0 < found["teacher_entropy"] < 10
    assert 0 <= found["agreement"] <= 1


def test_every_cell_runs_once_and_never_again(write_study: WriteStudy, tmp_path: Path) -> None:
    path, view = write_study(axes={"method": {"kd": {}, "sft": SFT, "copy": {}}}, seeds=[0]), Recorder()
    outcome = run(path, view)
    names = ["runs/kd-seed0", "runs/sft-seed0"]
    assert view.started_runs == names
    assert view.ended_runs == [(name, "done") for name in names]
    assert (outcome.num_failed, outcome.interrupted) == (0, False)
    assert json.loads((tmp_path / "study" / "study_result.json").read_text()) == outcome.result
    rows = outcome.result["rows"]
    assert [(row["labels"]["method"], row["run"], row["status"]) for row in rows] == [
        ("kd", names[0], "done"),
        ("sft", names[1], "done"),
        ("copy", names[0], "done"),  # shares the run of the equal recipe
    ]
    assert rows[0]["result"] == rows[2]["result"]
    says_what_was_measured(rows[0]["result"], tmp_path / "study" / "runs" / "kd-seed0")
    assert "step 6/6" in (tmp_path / "study" / "runs" / "kd-seed0" / "log.txt").read_text()
    again = Recorder()
    assert run(path, again).result == outcome.result
    assert again.started_runs == []


@pytest.mark.slow
def test_a_failing_run_is_reported_left_alone_and_tried_again_on_request(
    write_study: WriteStudy, tmp_path: Path
) -> None:
    later = tmp_path / "later.jsonl"
    axes = {"data": {"bad": {"data.train.0.path": str(later)}, "good": {}}}
    path, view = write_study(axes=axes, seeds=[0], retry=1), Recorder()
    outcome = run(path, view)
    assert view.started_runs == ["runs/bad-seed0", "runs/bad-seed0", "runs/good-seed0"]
    assert outcome.num_failed == 1
    bad, good = outcome.result["rows"]
    assert (bad["status"], good["status"]) == ("failed", "done")
    assert "later.jsonl: no such file" in bad["error"]
    assert bad["result"] is None
    later.write_text((tmp_path / "chat.jsonl").read_text())
    quiet = Recorder()
    assert run(path, quiet).num_failed == 1
    assert quiet.started_runs == []
    mended = run(path, quiet, retry_failed=True)
    assert quiet.started_runs == ["runs/bad-seed0"]
    assert (mended.num_failed, mended.result["rows"][0]["error"]) == (0, None)


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_run_alone(write_study: WriteStudy) -> None:
    view = Saboteur("runs/kd-seed0", 1, end_workers)
    outcome = run(write_study(seeds=[0]), view)
    assert view.ended_runs == [("runs/kd-seed0", "failed"), ("runs/sft-seed0", "done")]
    error = outcome.result["rows"][0]["error"]
    assert "SIGKILL (out of memory?)" in error
    assert "measuring on held-out rows before training" in error  # the end of its log


@pytest.mark.slow
def test_ctrl_c_saves_the_checkpoint_and_the_next_call_goes_on(write_study: WriteStudy, tmp_path: Path) -> None:
    path = write_study(axes={}, seeds=[0], train={"steps": 40})
    view = Saboteur("runs/seed0", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    stopped = run(path, view)
    assert stopped.interrupted
    assert [row["status"] for row in stopped.result["rows"]] == ["pending"]
    assert view.ended_runs == [("runs/seed0", "pending")]
    run_dir = tmp_path / "study" / "runs" / "seed0"
    saved = sorted((run_dir / "checkpoints" / "main").glob("step-*"))
    assert int(saved[-1].name[-8:]) == steps_of(run_dir) < 40
    resumed = run(path)
    assert [row["status"] for row in resumed.result["rows"]] == ["done"]
    assert "resuming from the checkpoint" in (run_dir / "log.txt").read_text()
    assert steps_of(run_dir) == 40


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_jobs_give_what_one_gives(write_study: WriteStudy) -> None:
    one = run(write_study("one", seeds=[0])).result
    two = run(write_study("two", seeds=[0], jobs=2)).result
    assert without_times(one) == without_times(two)


def test_a_run_of_another_recipe_is_not_mixed_in(write_study: WriteStudy) -> None:
    path = write_study(axes={}, seeds=[0])
    plan = plan_study(config_of(path), path.parent)
    open_run(plan.runs["runs/seed0"], path.parent)
    changed = write_study(axes={}, seeds=[0], train={"steps": 3})
    with pytest.raises(OutputError, match=r"runs/seed0: a run of another recipe is here \(different: stages"):
        run(changed)


def test_two_processes_do_not_work_on_one_study(
    write_study: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.study.state._LOCK_SECONDS", 0.2)
    lock = StudyLock(tmp_path / "study")
    with pytest.raises(OutputError, match="another process is at work"):
        run(write_study())
    lock.close()


def test_a_cache_is_filled_before_the_runs_that_read_it(write_study: WriteStudy, tmp_path: Path) -> None:
    cached = {"teacher.source": "cache", "teacher.cache": {"dir": str(tmp_path / "targets")}}
    temperature = {**cached, "stages.0.optimisation.learning_rate": 1e-3}
    path, view = write_study(axes={"x": {"slow": temperature, "fast": cached}}, seeds=[0]), Recorder()
    outcome = run(path, view)
    assert [line for line in view.said if "capturing" in line] == [
        "capturing the teacher's targets for runs/slow-seed0: only what the cache lacks"
    ]
    assert [row["status"] for row in outcome.result["rows"]] == ["done", "done"]
    for row in outcome.result["rows"]:
        flops = row["result"]["flops"]
        assert flops["teacher"] == 0
        assert flops["preparation"] > 0


def kill_when(process: subprocess.Popen[str], reached: Callable[[], bool], *, pause: float = 0.0) -> None:
    """SIGKILL the process ``pause`` seconds after ``reached``; fails when it ends by itself before."""
    deadline = time.monotonic() + 240.0
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    time.sleep(pause)
    assert process.poll() is None, process.communicate()[0]
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_in_mid_run_and_resumed_gives_the_same_result(
    write_study: WriteStudy, start_study: StartStudy, tmp_path: Path
) -> None:
    whole = run(write_study("whole", seeds=[0])).result
    path, runs = write_study("killed", seeds=[0]), tmp_path / "killed" / "runs"
    kill_when(start_study(path), lambda: steps_of(runs / "kd-seed0") >= 2)
    resumed = run(path).result  # waits for the worker that lost its parent
    assert without_times(resumed) == without_times(whole)
    events = [json.loads(line) for line in (runs / "kd-seed0" / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "step"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_random_ten_times_and_resumed_gives_the_same_result(
    write_study: WriteStudy, start_study: StartStudy, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"seeds": [0, 1, 2], "train": {"steps": 200}, "jobs": 2}
    whole = run(write_study("whole", **options)).result
    path, moments, done = write_study("killed", **options), random.Random(20), 0

    def trains_since(start: float) -> bool:
        return any(file.stat().st_mtime > start for file in (tmp_path / "killed").rglob("metrics.jsonl"))

    for _ in range(10):
        start = time.time()
        process = start_study(path)
        kill_when(process, lambda start=start: trains_since(start), pause=moments.uniform(0.0, 3.0))
        states = read_states(plan_study(config_of(path), tmp_path), tmp_path / "killed", retry_failed=False)
        before, done = done, sum(state.status == "done" for state in states.values())
        assert done >= before
    assert done < 6, "nothing was left to resume; make the runs longer"
    resumed = run(path).result
    assert [row["status"] for row in resumed["rows"]] == ["done"] * 6
    assert without_times(resumed) == without_times(whole)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ray_gives_what_local_workers_give(write_study: WriteStudy) -> None:
    pytest.importorskip("ray", reason="ray is not installed (extra `ray`)")
    local = run(write_study("local", seeds=[0])).result
    later = {"method": {"kd": {}, "sft": SFT, "bad": {"data.train.0.path": "nowhere.jsonl"}}}
    outcome = run(write_study("ray", seeds=[0], axes=later, parallel="ray", jobs=2))
    assert [row["status"] for row in outcome.result["rows"]] == ["done", "done", "failed"]
    assert "nowhere.jsonl: no such file" in outcome.result["rows"][2]["error"]
    ours = without_times(outcome.result)["rows"][:2]
    assert [row["result"] for row in ours] == [row["result"] for row in without_times(local)["rows"]]
