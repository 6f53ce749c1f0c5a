"""Runs as tasks of a Ray cluster, one task a run; the machines must share the study's folder and the data.

Connects to the cluster that ``RAY_ADDRESS`` names, else starts one on this machine. Only JSON text goes
to the tasks, and they do what a local worker does.
"""

from __future__ import annotations

import time
from typing import Any

from stillhouse.errors import MissingDependencyError
from stillhouse.study.task import Report, Task
from stillhouse.training.ray_resources import cpus_for_each

_PATIENCE_SECONDS = 60.0


class RayExecutor:
    """Up to ``jobs`` tasks at one time. Each gets an equal share of the cluster's CPUs, and of its GPUs if it has any."""

    def __init__(self, jobs: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError(
                "parallel=ray: ray is not installed; pip install 'stillhouse[ray]', or set parallel: local"
            ) from error
        self._ray: Any = ray
        self._started_here = not ray.is_initialized()
        if self._started_here:
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        resources = self._ray.cluster_resources()
        gpus = resources.get("GPU", 0.0)
        # One run cannot span machines, and a whole GPU each is what a run can use.
        self._remote = ray.remote(
            num_cpus=cpus_for_each(ray, jobs, gpus=gpus > 0),
            num_gpus=min(1.0, gpus / jobs),
            max_retries=0,
            max_calls=20,
        )(_perform)
        self._jobs = jobs
        self._running: dict[Any, tuple[Task, float]] = {}

    @property
    def num_free(self) -> int:
        return self._jobs - len(self._running)

    def submit(self, task: Task) -> None:
        """Queue the task; there must be a free place."""
        assert self.num_free > 0
        self._running[self._remote.remote(task.to_line())] = (task, time.monotonic())

    def wait(self, seconds: float) -> list[Report]:
        """Reports of what has ended, after at most so many seconds."""
        if not self._running:
            return []
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [self._report(reference) for reference in ended]

    def interrupt(self) -> list[Report]:
        """Ask every run to save its checkpoint and end; return how they ended."""
        for reference in self._running:
            self._ray.cancel(reference, force=False)
        reports: list[Report] = []
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._running and time.monotonic() < deadline:
            reports += self.wait(1.0)
        return reports

    def close(self) -> None:
        """End all tasks, and the cluster if it was started here."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        if self._started_here:
            self._ray.shutdown()

    def _report(self, reference: Any) -> Report:
        task, started = self._running.pop(reference)
        seconds = time.monotonic() - started
        try:
            return Report.from_line(self._ray.get(reference))
        except self._ray.exceptions.TaskCancelledError:
            return Report(task.name, "interrupted", None, seconds)
        except self._ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return Report(
                task.name, "failed", f"the Ray task ended: {lines[-1] if lines else error}; see {task.log}", seconds
            )


def _perform(line: str) -> str:
    from stillhouse.study.worker import perform

    return perform(Task.from_line(line)).to_line()
