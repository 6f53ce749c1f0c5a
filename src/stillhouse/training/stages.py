"""The stages of a run, one after the other: what each starts from, and what is kept of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.run_directory import read_json, write_json_atomic
from stillhouse.training.loop import LoopState


@dataclass(frozen=True)
class FinishedStage:
    """A stage that ended. ``kept_step``: the checkpoint whose weights go on; None: it was skipped."""

    name: str
    state: LoopState
    kept_step: int | None
    mixture_seconds: float | None = None
    """What the measurements of a following mixture took; None: nothing was measured."""
    method: dict[str, Any] = field(default_factory=dict)
    """What only the stage's method found out, under its name in ``result.json``."""

    @property
    def skipped(self) -> bool:
        return self.kept_step is None

    @classmethod
    def read(cls, path: Path) -> FinishedStage | None:
        """The record of a stage; None while it is not finished."""
        if not path.exists():
            return None
        saved = read_json(path)
        return cls(**{**saved, "state": LoopState(**saved["state"])})

    def write(self, path: Path) -> None:
        """Write the record atomically: from now on the stage is not repeated."""
        write_json_atomic(path, asdict(self))

    def as_result(self, objective: str) -> dict[str, Any]:
        """The stage's part of ``result.json``."""
        state = self.state
        return {
            "name": self.name,
            "objective": objective,
            "steps": state.step,
            "tokens": state.tokens,
            "targets": state.targets,
            "seconds": state.seconds,
            "stopped_because": state.stopped_because,
            "best_step": state.best_step,
        }
