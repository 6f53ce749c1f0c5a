"""A process that does runs one after the other: ``python -m stillhouse.study.worker``.

Tasks come as JSON lines on stdin, reports go as JSON lines to stdout, and what a run prints goes to its
log. torch is imported once for many runs. The worker ends when stdin does: when its parent is killed, so
is it, and the run goes on from its last checkpoint. SIGTERM ends a run cleanly.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from stillhouse.errors import StillhouseError
from stillhouse.recipe import Recipe
from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.study.task import Report, Status, Task


def main() -> None:
    """Serve tasks until stdin ends."""
    # Whatever a library prints must not get between our lines.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            report = perform(tasks.get())
            answers.write(report.to_line() + "\n")
            answers.flush()
            if report.status == "interrupted":
                return


def _read(tasks: queue.SimpleQueue[Task]) -> None:
    for line in sys.stdin:
        tasks.put(Task.from_line(line))
    # The parent is gone. Every file is written atomically or can be resumed, so nothing is left to do.
    os._exit(0)


def perform(task: Task) -> Report:
    """Do one task; a mistake in it is reported, anything else ends the process after a traceback in the log."""
    started = time.monotonic()
    with _alone_in(Path(task.log).parent), _into_log(Path(task.log)) as console:
        try:
            status, error = _do(task, console), None
        except StillhouseError as problem:
            status, error = "failed", str(problem)
            console.print(f"error: {problem}", markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            status, error = "interrupted", None
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            raise
    gc.collect()
    return Report(task.name, status, error, time.monotonic() - started)


def _do(task: Task, console: Console) -> Status:
    recipe = recipe_from_mapping(task.recipe, where=task.name)
    base_dir = Path(task.base_dir)
    if task.kind == "capture":
        _capture(recipe, base_dir, console)
        return "done"
    from stillhouse.training.run import train

    outcome = train(recipe, base_dir=base_dir, console=console)
    if outcome.interrupted:
        return "interrupted"
    if not task.keep_checkpoints:
        # With Adam's moments they are six times the size of the model, and nothing reads them again.
        shutil.rmtree(outcome.directory / "checkpoints", ignore_errors=True)
    return "done"


def _capture(recipe: Recipe, base_dir: Path, console: Console) -> None:
    from stillhouse.training.cached import CapturePlan, capture_recipe

    def announce(plan: CapturePlan) -> None:
        console.print(f"{plan.documents} documents with {plan.targets} targets to capture into {plan.folder}")

    capture_recipe(recipe, base_dir=base_dir, announce=announce)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process works in ``folder``: a Ray task may outlive its driver for a moment."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _into_log(path: Path) -> Iterator[Console]:
    """Append stdout and stderr of this process, C++ included, to ``path``."""
    with path.open("a", encoding="utf-8") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [os.dup(1), os.dup(2)]
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield Console(file=log, width=200, force_terminal=False)
        finally:
            log.flush()
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in enumerate(kept, start=1):
                os.dup2(saved, number)
                os.close(saved)


if __name__ == "__main__":
    main()
