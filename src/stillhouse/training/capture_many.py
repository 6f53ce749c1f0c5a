"""A capture shared out over processes: on this machine, or on a Ray cluster. Both do the same parts.

The cache needs no help for that: every worker writes shards of its own, and a document's draws depend on
the document alone, so the records are those of a single capture.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from stillhouse.errors import MissingDependencyError, OutputError, StillhouseError
from stillhouse.recipe import Recipe
from stillhouse.targets.capture import CaptureProgress
from stillhouse.training.cached import NOTHING_MISSING, CapturePlan, plan_capture
from stillhouse.training.capture_part import CapturePart, capture_part
from stillhouse.training.ray_resources import cpus_for_each

Announce = Callable[[CapturePlan], None]
Listener = Callable[[CaptureProgress], None]

_TAIL_LINES = 12
_PATIENCE_SECONDS = 60.0


def capture_on_workers(
    recipe: Recipe, num_workers: int, *, base_dir: Path, announce: Announce, progress: Listener | None = None
) -> CaptureProgress:
    """Capture with so many processes of this machine, one for each GPU in turn where there are any.

    Raises StillhouseError with a worker's message when it meets a user's mistake, OutputError with its last
    lines when it dies; the others are ended then. What they have written stays, and the same call goes on.
    """
    tasks = _tasks(recipe, num_workers, base_dir, _cpus() // num_workers, announce)
    return _Local(tasks, progress or _nobody).run() if tasks else NOTHING_MISSING


def capture_on_ray(
    recipe: Recipe, num_workers: int | None, *, base_dir: Path, announce: Announce, progress: Listener | None = None
) -> CaptureProgress:
    """Capture with tasks of the cluster that ``RAY_ADDRESS`` names, else of one that is started here.

    ``num_workers`` None: one for each GPU, without GPUs one for each machine. All machines must see the
    recipe's files and the cache's folder. Raises as ``capture_on_workers``, and MissingDependencyError
    without Ray.
    """
    try:
        import ray as ray_module
    except ImportError as error:
        raise MissingDependencyError(
            "--ray: ray is not installed; pip install 'stillhouse[ray]', or use --workers alone"
        ) from error
    ray: Any = ray_module
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        wanted = num_workers or gpus or len([node for node in ray.nodes() if node["Alive"]])
        threads = cpus_for_each(ray, wanted, gpus=gpus > 0)
        tasks = _tasks(recipe, wanted, base_dir, threads, announce)
        if not tasks:
            return NOTHING_MISSING
        remote = ray.remote(num_cpus=threads, num_gpus=min(1, gpus), max_retries=0)(_perform)
        return _gather(ray, [remote.remote(task.to_line()) for task in tasks], progress or _nobody)
    finally:
        if started_here:
            ray.shutdown()


def _tasks(recipe: Recipe, num_workers: int, base_dir: Path, threads: int, announce: Announce) -> list[CapturePart]:
    """One part for each worker; none where nothing is missing."""
    assert num_workers >= 1
    plan = plan_capture(recipe, base_dir)
    announce(plan)
    if not plan.documents:
        return []
    dumped, base = recipe.model_dump(mode="json"), str(base_dir.absolute())
    return [CapturePart(dumped, base, (i, num_workers), max(1, threads)) for i in range(num_workers)]


def _nobody(progress: CaptureProgress) -> None:
    del progress


def _together(parts: Sequence[CaptureProgress], seconds: float) -> CaptureProgress:
    """Add up what workers have done."""
    sums = {f.name: sum(getattr(part, f.name) for part in parts) for f in fields(CaptureProgress)}
    return CaptureProgress(**{**sums, "seconds": seconds})


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- Ray --------------------------------------------------------------------------------------------


def _perform(line: str) -> dict[str, Any]:
    """What a Ray task does; a user's mistake comes back as its message."""
    try:
        done = capture_part(CapturePart.from_line(line))
    except StillhouseError as error:
        return {"error": str(error)}
    return {"done": vars(done)}


def _gather(ray: Any, waiting: list[Any], progress: Listener) -> CaptureProgress:
    """Wait for all tasks; progress is known when one of them ends."""
    started, parts = time.monotonic(), []
    try:
        while waiting:
            (ready, *_), waiting = ray.wait(waiting, num_returns=1)
            try:
                answer = ray.get(ready)
            except ray.exceptions.RayError as error:
                lines = [line for line in str(error).splitlines() if line.strip()]
                raise OutputError(f"capture: a Ray task ended: {lines[-1] if lines else error}") from error
            if "error" in answer:
                raise StillhouseError(answer["error"])
            parts.append(CaptureProgress(**answer["done"]))
            progress(_together(parts, time.monotonic() - started))
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
    return _together(parts, time.monotonic() - started)


# --- processes of this machine -----------------------------------------------------------------------


class _Worker:
    """One process with its task; its lines come out of ``events`` as (worker, line), None at the end."""

    def __init__(self, task: CapturePart, events: queue.SimpleQueue[tuple[_Worker, str | None]]) -> None:
        self.task, self._events = task, events
        self.last = NOTHING_MISSING
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stillhouse.training.capture_part"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(task),
            start_new_session=True,  # Ctrl-C reaches it once, through us
        )
        assert self.process.stdin is not None
        self.process.stdin.write(task.to_line() + "\n")
        self.process.stdin.flush()
        self._errors = threading.Thread(target=self._read_errors, daemon=True)
        self._answers = threading.Thread(target=self._read_answers, daemon=True)
        for reader in (self._errors, self._answers):
            reader.start()

    def _read_answers(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put((self, line))
        self._events.put((self, None))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.tail.extend(line.rstrip() for line in self.process.stderr)

    def why(self) -> str:
        """How it ended, for people."""
        code = self.process.wait()
        self._errors.join(_PATIENCE_SECONDS)
        number, count = self.task.part
        return "\n  ".join([f"capture: worker {number + 1} of {count} ended with exit code {code}:", *self.tail])

    def end(self, seconds: float) -> None:
        """Wait so long for it, then kill it; a worker ends when its stdin does."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # They end with the process; closing what they still read would raise in them.
        for reader in (self._errors, self._answers):
            reader.join(_PATIENCE_SECONDS)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class _Local:
    def __init__(self, tasks: Sequence[CapturePart], progress: Listener) -> None:
        self._progress = progress
        self._events: queue.SimpleQueue[tuple[_Worker, str | None]] = queue.SimpleQueue()
        self._started = time.monotonic()
        self._workers = [_Worker(task, self._events) for task in tasks]

    def run(self) -> CaptureProgress:
        """Wait until all have ended; whoever is still at work when this fails is ended."""
        running, patience = set(self._workers), 0.0
        try:
            while running:
                worker, line = self._events.get()
                if line is None and worker in running:
                    raise OutputError(worker.why())
                if line is not None and self._is_done(worker, json.loads(line)):
                    running.remove(worker)
        except KeyboardInterrupt:
            for worker in self._workers:
                worker.process.send_signal(signal.SIGINT)
            patience = _PATIENCE_SECONDS  # each writes the shard in flight
            raise
        finally:
            for worker in self._workers:
                worker.end(patience if worker in running else _PATIENCE_SECONDS)
        return self._sum()

    def _is_done(self, worker: _Worker, answer: dict[str, Any]) -> bool:
        if "error" in answer:
            raise StillhouseError(answer["error"])
        worker.last = CaptureProgress(**(answer.get("done") or answer["progress"]))
        self._progress(self._sum())
        return "done" in answer

    def _sum(self) -> CaptureProgress:
        return _together([worker.last for worker in self._workers], time.monotonic() - self._started)


def _environment(task: CapturePart) -> dict[str, str]:
    """The worker's share of the threads, and its GPU."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    chosen = {"CUDA_VISIBLE_DEVICES": devices[task.part[0] % len(devices)]} if devices else {}
    return {**os.environ, "OMP_NUM_THREADS": str(task.threads), **chosen}
