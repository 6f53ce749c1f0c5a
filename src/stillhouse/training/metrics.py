"""Metrics: one JSON object a line, and optional trackers that receive the same numbers."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, Protocol

from stillhouse.errors import MissingDependencyError
from stillhouse.run_directory import write_text_atomic


class Tracker(Protocol):
    """Where numbers go besides ``metrics.jsonl``."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends to ``metrics.jsonl`` and hands the scalars to a tracker.

    The file counts each stage's steps from 0; a tracker, which knows one axis, gets ``first_step`` more.
    """

    def __init__(self, path: Path, tracker: Tracker | None = None, *, first_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a", encoding="utf-8")
        self._tracker = tracker
        self._first_step = first_step

    def write(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Append one line; a value that is not finite is written as null, as JSON has no NaN."""
        line = _finite({"event": event, "step": step, **values})
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        if self._tracker is not None:
            self._tracker.log({f"{event}/{k}": v for k, v in _scalars(values)}, self._first_step + step)

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()


def forget_after(path: Path, stage: str, step: int, *, earlier: Collection[str] = ()) -> None:
    """Drop the lines behind a checkpoint that a run resumes from, and a half-written last line.

    Kept are the lines of ``earlier`` stages, and those of ``stage`` up to ``step``.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
            if event["stage"] in earlier or (event["stage"] == stage and event["step"] <= step):
                kept.append(line)
        except (ValueError, KeyError):
            break
    write_text_atomic(path, "".join(f"{line}\n" for line in kept))


def open_tracker(kind: str, folder: Path, name: str, config: dict[str, Any]) -> Tracker | None:
    """Return the tracker that the recipe names. Raises MissingDependencyError with the extra."""
    if kind == "none":
        return None
    try:
        if kind == "tensorboard":
            return _TensorBoard(folder)
        return _RunTracker(kind, name, config)
    except ImportError as error:
        raise MissingDependencyError(
            f"output.tracker={kind}: {error.name or kind} is not installed; pip install 'stillhouse[{kind}]'"
        ) from error


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _RunTracker:
    """trackio and wandb share one interface."""

    def __init__(self, kind: str, name: str, config: dict[str, Any]) -> None:
        self._module = importlib.import_module(kind)
        self._module.init(project="stillhouse", name=name, config=config)

    def log(self, values: dict[str, float], step: int) -> None:
        self._module.log(values, step=step)

    def close(self) -> None:
        self._module.finish()


def _scalars(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((f"{prefix}{key}", float(value)))
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
