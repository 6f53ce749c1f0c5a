"""Where each run of a study stands, read from its directory."""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stillhouse.errors import OutputError, RecipeError
from stillhouse.recipe import Recipe
from stillhouse.recipe_io import read_mapping, recipe_from_mapping
from stillhouse.run_directory import RunDirectory, changed_fields, read_json, write_json_atomic
from stillhouse.study.grid import Plan, PlannedRun

ATTEMPT_NAME = "attempt.json"
LOG_NAME = "log.txt"
_LOCK_SECONDS = 60.0

RunStatus = Literal["pending", "running", "done", "failed"]


@dataclass
class RunState:
    """``seconds`` is the wall time of all attempts whose end was seen."""

    status: RunStatus = "pending"
    error: str | None = None
    seconds: float = 0.0
    attempts: int = 0


def read_states(plan: Plan, folder: Path, *, retry_failed: bool) -> dict[str, RunState]:
    """Where every run stands. ``retry_failed`` makes failed runs pending again.

    Raises OutputError where a directory belongs to a run of another recipe.
    """
    states, foreign = {}, []
    for name, run in plan.runs.items():
        try:
            _refuse_another_recipe(folder / name, run.recipe)
        except RecipeError as error:
            foreign.append(str(error))
        states[name] = _read_state(folder / name, retry_failed=retry_failed)
    if foreign:
        raise OutputError("\n".join(foreign[:5] + ([f"and {len(foreign) - 5} more"] if len(foreign) > 5 else [])))
    return states


def _read_state(folder: Path, *, retry_failed: bool) -> RunState:
    state = RunState()
    if (folder / ATTEMPT_NAME).exists():
        saved = read_json(folder / ATTEMPT_NAME)
        state.seconds, state.attempts = saved["seconds"], saved["attempts"]
        if saved["status"] == "failed" and not retry_failed:
            state.status, state.error = "failed", saved["error"]
    if RunDirectory(folder).is_done:
        state.status, state.error = "done", None
    return state


def write_state(folder: Path, state: RunState) -> None:
    """Keep how an attempt ended beside the run."""
    write_json_atomic(
        folder / ATTEMPT_NAME,
        {"status": state.status, "error": state.error, "seconds": state.seconds, "attempts": state.attempts},
    )


def open_run(run: PlannedRun, base_dir: Path) -> Path:
    """Make the run's directory with its recipe, so that log and attempts can stand beside it."""
    return RunDirectory.open(run.recipe, base_dir / run.recipe.output.dir, overwrite=False).path


def _refuse_another_recipe(folder: Path, recipe: Recipe) -> None:
    if not (folder / "recipe.yaml").exists():
        return
    # Read through the schema: fields that a newer version added stand at their defaults.
    saved = recipe_from_mapping(read_mapping(folder / "recipe.yaml"), where=str(folder / "recipe.yaml"))
    changed = changed_fields(saved.model_dump(mode="json"), recipe.model_dump(mode="json"))
    if changed:
        raise RecipeError(
            f"{folder}: a run of another recipe is here (different: {', '.join(changed[:5])}); "
            "the study or its base changed since. Give the study another output, or delete this folder to repeat the run"
        )


class StudyLock:
    """Only one process works on a study.

    The lock belongs to the open file, so worker processes that inherit it hold it as well: after the parent
    is killed the next one waits until the last worker has ended, and no run directory has two writers.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another output") from error
        deadline = time.monotonic() + _LOCK_SECONDS
        while not self._try():
            if time.monotonic() > deadline:
                os.close(self.descriptor)
                raise OutputError(f"{folder}: another process is at work on this study; wait for it, or stop it first")
            time.sleep(0.1)

    def _try(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self.descriptor)
