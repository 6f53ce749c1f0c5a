"""A run directory as the report reads it, finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.errors import OutputError
from stillhouse.recipe_io import parse_yaml
from stillhouse.run_directory import read_json


@dataclass(frozen=True)
class RunData:
    """What one run wrote. ``result`` is None while the run is not finished."""

    path: Path
    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    result: dict[str, Any] | None
    notes: tuple[str, ...]
    """What was odd about the files."""
    mixtures: list[dict[str, Any]] = field(default_factory=list)
    """Where an interval began or was refused: weights, ratios and tokens by domain."""

    @property
    def objective(self) -> str:
        """The objective of the last stage, ``kd`` for one."""
        return objective_of(self.recipe)


def objective_of(recipe: dict[str, Any]) -> str:
    """Return the objective of a dumped recipe's last stage, ``kd`` for one."""
    return str(recipe["stages"][-1]["objective"]["type"])


def is_run(path: Path) -> bool:
    """Whether a run has begun in a folder."""
    return (path / "recipe.yaml").is_file()


def read_run(path: Path) -> RunData:
    """Read a run directory.

    Raises OutputError when the folder holds no run, or one of its files is damaged.
    """
    if not is_run(path):
        raise OutputError(
            f"{path}: no run is here (recipe.yaml is missing); give a run directory, the output.dir of a recipe"
        )
    result = read_json(path / "result.json") if (path / "result.json").is_file() else None
    environment = read_json(path / "environment.json") if (path / "environment.json").is_file() else {}
    events, notes = _read_metrics(path / "metrics.jsonl")
    recipe = parse_yaml((path / "recipe.yaml").read_text(encoding="utf-8"), str(path / "recipe.yaml"))
    events = count_through(events, [str(stage.get("name", "main")) for stage in recipe["stages"]])
    return RunData(
        path=path,
        name=path.resolve().name,
        recipe=recipe,
        environment=environment,
        steps=_of_kind(events, "step"),
        evaluations=_of_kind(events, "evaluation"),
        result=result,
        notes=notes,
        mixtures=_of_kind(events, "mixture"),
    )


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the lines and notes; a last line cut by a crash is left out and noted."""
    if not path.is_file():
        return [], ("metrics.jsonl is missing, so there are no curves.",)
    lines = path.read_text(encoding="utf-8").splitlines()
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise OutputError(
                    f"{path}:{number}: not a JSON line ({error}); delete this line and try again"
                ) from error
            return events, ("The last line of metrics.jsonl is cut off and was left out.",)
    return events, ()


def count_through(events: list[dict[str, Any]], stages: list[str]) -> list[dict[str, Any]]:
    """Return the events with steps counted through all stages; each stage's own count starts at 0."""
    first, before = {}, 0
    for name in stages:
        first[name] = before
        before += max((e["step"] for e in events if e.get("stage") == name and e.get("event") == "step"), default=0)
    return [{**e, "step": e["step"] + first.get(str(e.get("stage")), 0)} if "step" in e else e for e in events]


def _of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Events of one kind in order; a step written twice (before and after resuming) counts as last written."""
    latest = {(event.get("stage"), event["step"]): event for event in events if event.get("event") == kind}
    return list(latest.values())
