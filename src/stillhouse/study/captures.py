"""Which teacher targets of a study are in their caches: each set of documents is captured once, before its first run."""

from __future__ import annotations

import json

from stillhouse.recipe import DistillationObjective, Recipe
from stillhouse.study.task import Report


class Captures:
    """What has been captured, and the one capture that is under way.

    One at a time: two would score the documents that they share twice. A run waits for its own capture
    alone, which may itself wait for a prepared teacher. A capture that fails counts as done: its runs then
    say what is missing.
    """

    def __init__(self) -> None:
        self._done: set[str] = set()
        self._running: tuple[str, str] | None = None

    @property
    def running(self) -> bool:
        """Whether a capture is under way."""
        return self._running is not None

    def has(self, recipe: Recipe) -> bool:
        """Whether nothing is to be captured for a run."""
        key = capture_key(recipe)
        return key is None or key in self._done

    def started(self, task: str, recipe: Recipe) -> None:
        """Note that a task captures what ``recipe`` reads; none is under way."""
        key = capture_key(recipe)
        assert key is not None
        assert self._running is None
        self._running = task, key

    def ended(self, report: Report) -> str | None:
        """Note the end of the capture; words for what went wrong, None when nothing did."""
        assert self._running is not None
        assert self._running[0] == report.name
        self._done.add(self._running[1])
        self._running = None
        return f"the {report.name} failed: {report.error}" if report.status == "failed" else None


def capture_key(recipe: Recipe) -> str | None:
    """What the captured documents of a run depend on, as text; None where no stage reads a cache.

    Stages without a divergence need no targets, so their rows are no part of it.
    """
    asking = [stage for stage in recipe.stages if isinstance(stage.objective, DistillationObjective)]
    if recipe.teacher is None or recipe.teacher.cache is None or not asking:
        return None
    parts = recipe.model_dump(mode="json", include={"teacher", "student", "data", "evaluation", "seed"})
    parts["stages"] = [stage.data.model_dump(mode="json") if stage.data else None for stage in asking]
    return json.dumps(parts, sort_keys=True)
