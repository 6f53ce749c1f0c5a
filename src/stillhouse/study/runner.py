"""Runs the grid: what is left of it, a few at a time, and can be killed at any moment.

All state is in the run directories. Finished runs are never repeated, interrupted ones go on from their
last checkpoint, failed ones wait for ``retry_failed``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stillhouse.study.captures import Captures
from stillhouse.study.collect import Results
from stillhouse.study.estimate import Durations
from stillhouse.study.grid import Plan, PlannedRun
from stillhouse.study.local import LocalExecutor
from stillhouse.study.state import LOG_NAME, RunState, StudyLock, open_run, read_states, write_state
from stillhouse.study.task import Kind, Report, Task
from stillhouse.study.view import Status, View
from stillhouse.training.interrupt import Interrupt

_REFRESH_SECONDS = 0.5


class Executor(Protocol):
    """Whoever does the runs."""

    @property
    def num_free(self) -> int: ...

    def submit(self, task: Task) -> None: ...

    def wait(self, seconds: float) -> list[Report]: ...

    def interrupt(self) -> list[Report]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class StudyOutcome:
    """``result`` is what ``study_result.json`` holds; ``interrupted``: a signal ended the study early."""

    folder: Path
    result: dict[str, Any]
    num_failed: int
    interrupted: bool


def run_study(
    plan: Plan,
    *,
    base_dir: Path,
    view: View,
    retry_failed: bool = False,
    estimate: Callable[[Plan, Sequence[str]], Durations] | None = None,
) -> StudyOutcome:
    """Do what is left of a study and write ``study_result.json`` after every run.

    ``estimate`` guesses the seconds of runs when none has finished yet. Raises OutputError when the
    folder is taken by another process or holds runs of other recipes; nothing was started then.
    """
    folder = base_dir / plan.output
    lock = StudyLock(folder)
    try:
        states = read_states(plan, folder, retry_failed=retry_failed)
        study = _Study(plan, base_dir, folder, states, view)
        study.announce(estimate)
        return study.run(lambda: _executor(plan, folder, lock))
    finally:
        lock.close()


def plan_only(
    plan: Plan,
    *,
    base_dir: Path,
    view: View,
    retry_failed: bool = False,
    estimate: Callable[[Plan, Sequence[str]], Durations] | None = None,
) -> None:
    """Print what ``run_study`` would do and how long it would take; nothing is written."""
    folder = base_dir / plan.output
    states = read_states(plan, folder, retry_failed=retry_failed)
    _Study(plan, base_dir, folder, states, view).announce(estimate)


def _executor(plan: Plan, folder: Path, lock: StudyLock) -> Executor:
    if plan.config.parallel == "ray":
        from stillhouse.study.ray_cluster import RayExecutor

        return RayExecutor(plan.config.jobs)
    return LocalExecutor(plan.config.jobs, logs=folder, keep_open=(lock.descriptor,))


class _Study:
    def __init__(self, plan: Plan, base_dir: Path, folder: Path, states: dict[str, RunState], view: View) -> None:
        self._plan, self._base, self._folder, self._states, self._view = plan, base_dir, folder, states, view
        self._left = deque(name for name, state in states.items() if state.status == "pending")
        self._tries = dict.fromkeys(plan.runs, 1 + plan.config.retry)
        self._durations = Durations.of_finished(plan, states)
        self._results = Results(plan, folder)
        self._captures = Captures()

    def announce(self, estimate: Callable[[Plan, Sequence[str]], Durations] | None) -> None:
        """Say how many runs are left and how long they will take, before any time is spent."""
        if not self._durations.known and estimate is not None and self._left:
            self._durations = estimate(self._plan, list(self._left))
        self._view.announce(self._plan, self._states, self._durations)

    def run(self, open_executor: Callable[[], Executor]) -> StudyOutcome:
        result = self._write()
        if not self._left:
            return StudyOutcome(self._folder, result, self._count("failed"), False)
        with Interrupt() as interrupt:
            executor = open_executor()
            try:
                with self._view:
                    self._work(executor, interrupt)
            finally:
                executor.close()
        return StudyOutcome(self._folder, self._write(), self._count("failed"), interrupt.signal is not None)

    def _work(self, executor: Executor, interrupt: Interrupt) -> None:
        running: set[str] = set()
        while (self._left or running or self._captures.running) and interrupt.signal is None:
            while executor.num_free and (task := self._next_task()) is not None:
                if task.kind == "train":
                    running.add(task.name)
                executor.submit(task)
            self._show()
            for report in executor.wait(_REFRESH_SECONDS):
                if report.name in running:
                    running.discard(report.name)
                    self._end(report)
                elif (problem := self._captures.ended(report)) is not None:
                    self._view.say(problem)
        if interrupt.signal is not None:
            self._view.say("stopping: each run saves its checkpoint first; Ctrl-C again stops at once")
            for report in executor.interrupt():
                if report.name in running:
                    running.discard(report.name)
                    self._end(report)
            for name in running:
                self._states[name].status = "pending"

    def _next_task(self) -> Task | None:
        """The next run whose needs are done, or the capture that it waits for; those that wait for a failed one fail."""
        for name in list(self._left):
            run = self._plan.runs[name]
            failed = [need for need in run.needs if self._states[need].status == "failed"]
            if failed:
                self._left.remove(name)
                state = self._states[name]
                state.status, state.error = "failed", f"it builds on {failed[0]}, which failed"
                self._view.say(f"failed  {name}: {state.error}")
                continue
            if any(self._states[need].status != "done" for need in run.needs):
                continue
            if self._captures.has(run.recipe):
                self._left.remove(name)
                return self._start(run)
            if not self._captures.running:
                self._view.say(f"capturing the teacher's targets for {name}: only what the cache lacks")
                task = self._task(run, "capture", self._folder / "capture.log")
                self._captures.started(task.name, run.recipe)
                return task
        return None

    def _start(self, run: PlannedRun) -> Task:
        folder = open_run(run, self._base)
        state = self._states[run.name]
        state.status, state.error = "running", None
        state.attempts += 1
        self._write()
        self._view.started(run.name)
        return self._task(run, "train", folder / LOG_NAME)

    def _end(self, report: Report) -> None:
        state = self._states[report.name]
        state.seconds += report.seconds
        self._tries[report.name] -= 1
        if report.status == "failed" and self._tries[report.name] > 0:
            self._view.say(f"{report.name} failed and is tried again: {_first_line(report.error)}")
            state.status = "pending"
            self._left.appendleft(report.name)
        else:
            state.status = "pending" if report.status == "interrupted" else report.status
            state.error = report.error
        write_state(self._folder / report.name, state)
        self._durations = Durations.of_finished(self._plan, self._states) or self._durations
        result = self._write()
        self._view.ended(report.name, state, _nll_of(result, report.name))

    def _task(self, run: PlannedRun, kind: Kind, log: Path) -> Task:
        name = run.name if kind == "train" else f"{kind} {run.name}"
        recipe = run.recipe.model_dump(mode="json")
        keep = self._plan.config.keep_checkpoints
        return Task(name, kind, recipe, str(self._base.absolute()), str(log.absolute()), keep)

    def _show(self) -> None:
        self._view.show(Status(self._folder, self._states, self._durations, self._plan.config.jobs))

    def _write(self) -> dict[str, Any]:
        return self._results.write(self._states)

    def _count(self, status: str) -> int:
        return sum(state.status == status for state in self._states.values())


def _nll_of(result: dict[str, Any], name: str) -> float | None:
    return next((row["result"]["nll"] for row in result["rows"] if row["run"] == name and row["result"]), None)


def _first_line(text: str | None) -> str:
    return (text or "").splitlines()[0] if text else ""
