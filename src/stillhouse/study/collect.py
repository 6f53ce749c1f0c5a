"""``study_result.json``: a row for every cell of the grid, read from the run directories."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.recipe import Recipe
from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.run_directory import read_json, write_json_atomic
from stillhouse.study.cost import StageTokens, run_flops
from stillhouse.study.grid import Plan
from stillhouse.study.state import RunState

RESULT_NAME = "study_result.json"
_LAST_STEPS = 10


class Results:
    """Writes a study's result, again after every run; each run's files are read once."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._read: dict[str, dict[str, Any]] = {}

    def write(self, states: Mapping[str, RunState]) -> dict[str, Any]:
        """Write ``study_result.json`` and return it. A run that several cells share counts for each."""
        config = self._plan.config
        rows = [
            {
                "labels": cell.labels,
                "seed": cell.seed,
                "status": states[cell.run].status,
                "run": cell.run,
                "error": states[cell.run].error,
                "result": self._result(cell.run) if states[cell.run].status == "done" else None,
            }
            for cell in self._plan.cells
        ]
        result = {
            "name": config.name,
            "axes": {axis: list(labels) for axis, labels in config.axes.items()},
            "seeds": list(config.seeds),
            "roles": dict(config.roles),
            "baseline": config.baseline,
            "rows": rows,
        }
        write_json_atomic(self._folder / RESULT_NAME, result)
        return result

    def _result(self, name: str) -> dict[str, Any]:
        if name not in self._read:
            self._read[name] = run_result(self._folder / name)
        return self._read[name]


def run_result(folder: Path) -> dict[str, Any]:
    """The numbers of a finished run directory that a study compares.

    ``agreement`` (share of training positions where teacher and student put the same token first) and
    ``teacher_entropy`` (nats) are means over the last ten steps that had a teacher beside them.
    Raises OutputError when a file is damaged.
    """
    result = read_json(folder / "result.json")
    recipe = recipe_from_mapping(result["recipe"], where=str(folder / "result.json"))
    steps = _step_events(folder / "metrics.jsonl")
    evaluation, training = result["evaluation"], result["training"]
    domains = _domains(evaluation["student_after"])
    teacher = _domains(evaluation["teacher"])
    exact = (evaluation["student_after"]["exact_match"] or {}).get("score")
    scores = _scores(evaluation["student_after"])
    data = result["data"]["train"]
    return {
        "nll": result["headline"]["student_after"],
        "domains": domains,
        "perplexity_ratio": _ratios(domains, teacher),
        "before_nll": result["headline"]["student_before"],
        "teacher_nll": result["headline"]["teacher"],
        "teacher_domains": teacher,
        "gap_closed": result["headline"]["gap_closed"],
        "exact_match": exact,
        "scores": scores,
        "teacher_scores": _scores(evaluation["teacher"]),
        "train_rows": data["documents"],
        "train_tokens": data["tokens"],
        **{key: training[key] for key in ("steps", "tokens", "targets", "seconds", "tokens_per_second")},
        "flops": _flops(recipe, result, steps),
        "parameters": result["parameters"],
        "teacher_entropy": _last_mean(steps, "teacher_entropy"),
        "agreement": _last_mean(steps, "top1_agreement"),
    }


def _domains(evaluation: dict[str, Any] | None) -> dict[str, float] | None:
    return None if evaluation is None else {name: d["nll"] for name, d in evaluation["domains"].items()}


def _scores(evaluation: dict[str, Any] | None) -> dict[str, float]:
    """Every score of a model by its name, exact match first."""
    if evaluation is None:
        return {}
    exact = evaluation["exact_match"]
    found = {} if exact is None else {"exact_match": exact["score"]}
    return {**found, **{name: score["score"] for name, score in (evaluation.get("scores") or {}).items()}}


def _ratios(student: dict[str, float] | None, teacher: dict[str, float] | None) -> dict[str, float] | None:
    if student is None or teacher is None:
        return None
    differences = {name: nll - teacher[name] for name, nll in student.items() if name in teacher}
    # JSON has no infinity, and a ratio of e^700 says no more than none.
    return {name: math.exp(difference) for name, difference in differences.items() if difference < 700}


def _step_events(path: Path) -> list[dict[str, Any]]:
    events = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [event for event in events if event["event"] == "step"]


def _flops(recipe: Recipe, result: dict[str, Any], steps: list[dict[str, Any]]) -> dict[str, float]:
    own_rows = {stage.name: result["data"][f"train of {stage.name}"]["tokens"] for stage in recipe.stages if stage.data}
    tokens = {
        stage["name"]: StageTokens(stage["tokens"], _written(stage["name"], steps), own_rows.get(stage["name"]))
        for stage in result["training"]["stages"]
    }
    parameters = result["parameters"]
    training_set = result["data"]["train"]["tokens"]
    return run_flops(
        recipe, tokens, training_set, student=parameters["student"], teacher=parameters["teacher"]
    ).to_json()


def _written(stage: str, steps: list[dict[str, Any]]) -> int:
    """Tokens of the stage's on-policy steps; a step event counts the stage's tokens so far."""
    own = [event for event in steps if event["stage"] == stage]
    before = [0, *(event["tokens"] for event in own)]
    return sum(event["tokens"] - start for event, start in zip(own, before, strict=False) if event.get("on_policy"))


def _last_mean(steps: list[dict[str, Any]], name: str) -> float | None:
    values = [event[name] for event in steps if event.get(name) is not None][-_LAST_STEPS:]
    return sum(values) / len(values) if values else None
