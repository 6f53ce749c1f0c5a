"""What the tests of studies share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillhouse.study.config import StudyConfig
from stillhouse.study.estimate import Durations
from stillhouse.study.grid import Plan
from stillhouse.study.state import RunState
from stillhouse.study.view import Status

WriteStudy = Callable[..., Path]
SFT = {"stages.0.objective": {"type": "sft"}}


class Recorder:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.started_runs: list[str] = []
        self.ended_runs: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.durations: Durations | None = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None: ...

    def announce(self, plan: Plan, states: dict[str, RunState], durations: Durations) -> None:
        self.durations = durations

    def say(self, text: str) -> None:
        self.said.append(text)

    def started(self, name: str) -> None:
        self.started_runs.append(name)

    def ended(self, name: str, state: RunState, nll: float | None) -> None:
        self.ended_runs.append((name, state.status))

    def show(self, status: Status) -> None: ...


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """A study's result less what a clock or a folder put into it."""
    copy = json.loads(json.dumps(result))
    for row in copy["rows"]:
        if row["result"] is not None:
            del row["result"]["seconds"], row["result"]["tokens_per_second"]
    return copy


def config_of(path: Path) -> StudyConfig:
    return StudyConfig.from_yaml(path)
