"""What the runner hands to whoever does a run, and what comes back: two small JSON objects."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["train", "capture"]
Status = Literal["done", "interrupted", "failed"]


@dataclass(frozen=True)
class Task:
    """Train a recipe, or capture what its teacher cache lacks. Paths are absolute."""

    name: str
    kind: Kind
    recipe: dict[str, Any]
    base_dir: str
    log: str
    """File that takes what the run prints."""
    keep_checkpoints: bool = True
    """False: the checkpoints go when the run is finished."""

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Task:
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Report:
    """How a task ended. ``error`` is for people; ``seconds`` are wall time."""

    name: str
    status: Status
    error: str | None
    seconds: float

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Report:
        return cls(**json.loads(line))
