"""Runs on this machine: worker processes that each do one run at a time."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from stillhouse.study.task import Report, Task

RUNS_PER_WORKER = 20
"""Then a fresh process takes over: what a library leaks over many runs goes with the old one."""
_TAIL_LINES = 15
_PATIENCE_SECONDS = 60.0


class LocalExecutor:
    """Up to ``jobs`` worker processes, started when there is work for them.

    ``keep_open`` are file descriptors that the workers hold as well, such as the study's lock: it stays
    taken until the last of them has ended, also when this process is killed.
    """

    def __init__(self, jobs: int, *, logs: Path, keep_open: Sequence[int] = ()) -> None:
        self._jobs, self._logs, self._keep_open = jobs, logs, tuple(keep_open)
        self._events: queue.SimpleQueue[tuple[_Worker, str | None]] = queue.SimpleQueue()
        self._workers: list[_Worker] = []

    @property
    def num_free(self) -> int:
        return self._jobs - sum(worker.task is not None for worker in self._workers)

    def submit(self, task: Task) -> None:
        """Give the task to an idle worker; there must be a free place."""
        assert self.num_free > 0
        self._retire_the_old()
        worker = next((w for w in self._workers if w.task is None), None)
        if worker is None:
            worker = _Worker(self._events, self._logs, self._environment(), self._keep_open)
            self._workers.append(worker)
        worker.start(task)

    def wait(self, seconds: float) -> list[Report]:
        """Reports of what has ended, after at most so many seconds."""
        reports: list[Report] = []
        deadline = time.monotonic() + seconds
        while not reports or not self._events.empty():
            try:
                worker, line = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            report = worker.read(line)
            if line is None and worker in self._workers:
                worker.end()
                self._workers.remove(worker)
            if report is not None:
                reports.append(report)
        return reports

    def interrupt(self) -> list[Report]:
        """Ask every run to save its checkpoint and end; return how they ended."""
        for worker in self._workers:
            worker.interrupted = True
            worker.signal(signal.SIGTERM)
        reports: list[Report] = []
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while any(worker.task is not None for worker in self._workers) and time.monotonic() < deadline:
            reports += self.wait(1.0)
        return reports

    def close(self) -> None:
        """End all workers, at once."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _retire_the_old(self) -> None:
        for worker in [w for w in self._workers if w.task is None and w.num_done >= RUNS_PER_WORKER]:
            worker.end()
            self._workers.remove(worker)

    def _environment(self) -> dict[str, str]:
        """Workers share the cores; a smaller number that is set already stays."""
        if self._jobs == 1:
            return dict(os.environ)
        share = max(1, len(os.sched_getaffinity(0)) // self._jobs)
        given = os.environ.get("OMP_NUM_THREADS", "")
        threads = min(share, int(given)) if given.isdigit() else share
        return {**os.environ, "OMP_NUM_THREADS": str(threads)}


class _Worker:
    """One process, the task it is at, and a thread that listens to it."""

    def __init__(
        self,
        events: queue.SimpleQueue[tuple[_Worker, str | None]],
        logs: Path,
        environment: dict[str, str],
        keep_open: Sequence[int],
    ) -> None:
        self.task: Task | None = None
        self.num_done = 0
        self.interrupted = False
        self._started = 0.0
        with (logs / "workers.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stillhouse.study.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                pass_fds=keep_open,
                process_group=0,  # Ctrl-C is for the parent, which then asks each worker
                text=True,
                encoding="utf-8",
            )
        self._listener = threading.Thread(target=self._listen, args=(events,), daemon=True)
        self._listener.start()

    def start(self, task: Task) -> None:
        assert self.task is None
        assert self._process.stdin is not None
        self.task, self._started = task, time.monotonic()
        try:
            self._process.stdin.write(task.to_line() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died while idle: the end of its output, which comes next, says so

    def read(self, line: str | None) -> Report | None:
        """A line it wrote, or None when its output ended: what that says of its task."""
        task, self.task = self.task, None
        if line is not None:
            self.num_done += 1
            return Report.from_line(line)
        code = self._process.wait()
        if task is None:
            return None
        seconds = time.monotonic() - self._started
        if self.interrupted:
            return Report(task.name, "interrupted", None, seconds)
        return Report(task.name, "failed", f"{_death(code)}\n{_tail(Path(task.log))}".rstrip(), seconds)

    def signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join(_PATIENCE_SECONDS)  # closing what it still reads would raise in it
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _listen(self, events: queue.SimpleQueue[tuple[_Worker, str | None]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            events.put((self, line))
        events.put((self, None))


def _death(code: int) -> str:
    if code >= 0:
        return f"the worker process ended with exit code {code}; the end of its log:"
    name = signal.Signals(-code).name
    memory = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"the worker process was ended by {name}{memory}; the end of its log:"


def _tail(path: Path) -> str:
    if not path.exists():
        return "(empty)"
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
