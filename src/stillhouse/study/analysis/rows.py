"""The rows of ``study_result.json`` as runs that can be looked up, and what of them is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from stillhouse.errors import DataError, RecipeError, did_you_mean
from stillhouse.study.config import axis_roles

LOWER_IS_BETTER = ("nll", "loss", "ece", "perplexity", "ppl", "kl", "brier")
"""Last parts of the names of metrics that are better when lower; all others are scores."""


@dataclass(frozen=True)
class Arm:
    """What is compared at each size: a method, its teacher, and the labels of every other axis."""

    method: str | None
    teacher: str | None
    group: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Run:
    """One finished run: its labels by axis, its seed and its RES object."""

    labels: Mapping[str, str]
    seed: int
    result: Mapping[str, Any]

    def value(self, metric: str) -> float | None:
        """``nll``, ``exact_match``, ``perplexity_ratio`` (mean over domains) or the score of that name."""
        if metric == "nll":
            return float(self.result["nll"])
        if metric == "exact_match":
            return _number(self.result.get("exact_match"))
        if metric == "perplexity_ratio":
            ratios = self.result.get("perplexity_ratio")
            return mean(ratios.values()) if ratios else None
        return _number((self.result.get("scores") or {}).get(metric))

    def teacher_value(self, metric: str) -> float | None:
        """``nll`` or the score of that name, of the run's teacher; None where it was not measured."""
        if metric == "nll":
            return _number(self.result.get("teacher_nll"))
        return _number((self.result.get("teacher_scores") or {}).get(metric))


@dataclass(frozen=True)
class Size:
    """A label of the size axis: training rows and tokens behind it (medians over its runs)."""

    label: str
    rows: float
    tokens: float | None


@dataclass(frozen=True)
class Study:
    """A study's finished runs, which axis plays which part, and the runs that are not there.

    ``method_axis``, ``size_axis`` and ``teacher_axis`` are None where the study has no such axis;
    ``baseline`` is the method that the study file names as the one to compare with.
    """

    name: str
    axes: Mapping[str, Sequence[str]]
    runs: tuple[Run, ...]
    method_axis: str | None
    size_axis: str | None
    teacher_axis: str | None
    unfinished: tuple[dict[str, Any], ...] = field(default=())
    baseline: str | None = None

    @cached_property
    def table(self) -> dict[Arm, dict[str | None, dict[int, Run]]]:
        """Arm, then size label (None without that axis), then seed."""
        found: dict[Arm, dict[str | None, dict[int, Run]]] = {}
        for run in self.runs:
            size = run.labels[self.size_axis] if self.size_axis else None
            found.setdefault(self.arm_of(run), {}).setdefault(size, {})[run.seed] = run
        return found

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """Labels that have finished runs, from few rows to many; empty without a size axis."""
        if self.size_axis is None:
            return ()
        sizes = []
        for label in self.axes[self.size_axis]:
            runs = [run.result for run in self.runs if run.labels[self.size_axis] == label]
            rows = [float(r["train_rows"]) for r in runs if r.get("train_rows")]
            tokens = [float(r["train_tokens"]) for r in runs if r.get("train_tokens")]
            if rows:
                sizes.append(Size(label, _median(rows), _median(tokens) if tokens else None))
        return tuple(sorted(sizes, key=lambda size: size.rows))

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Labels of the method axis that have finished runs, in the study's order."""
        found = {arm.method for arm in self.table}
        return tuple(m for m in (self.axes[self.method_axis] if self.method_axis else ()) if m in found)

    @cached_property
    def score_names(self) -> tuple[str, ...]:
        """Every metric beside NLL that some run has: exact match first, then the suite's scores."""
        names = {name for run in self.runs for name in run.result.get("scores") or {}}
        exact = any(run.result.get("exact_match") is not None for run in self.runs)
        return (*(["exact_match"] if exact else []), *sorted(names - {"exact_match", "nll"}))

    def arm_of(self, run: Run) -> Arm:
        """The arm that a run belongs to."""
        roles = {self.method_axis, self.size_axis, self.teacher_axis}
        group = tuple((axis, run.labels[axis]) for axis in self.axes if axis not in roles)
        method = run.labels[self.method_axis] if self.method_axis else None
        return Arm(method, run.labels[self.teacher_axis] if self.teacher_axis else None, group)

    def uses_teacher(self, method: str | None) -> bool:
        """False where every finished run of the method spent nothing on its teacher: SFT, CPT."""
        runs = [run for run in self.runs if (run.labels[self.method_axis] if self.method_axis else None) == method]
        spent = [run.result.get("flops") or {} for run in runs]
        return any(flops.get("teacher") or flops.get("preparation") for flops in spent)

    def baseline_of(self, arm: Arm, baseline: str) -> dict[str | None, dict[int, Run]]:
        """The baseline's runs that ``arm`` is compared with, by size and seed.

        They share teacher and group. A baseline that learns nothing from a teacher is run for one
        teacher only in a study that saves time; then that one serves all teachers.
        """
        same = self.table.get(Arm(baseline, arm.teacher, arm.group))
        if same is not None or self.uses_teacher(baseline):
            return same or {}
        others = [a for a in self.table if a.method == baseline and a.group == arm.group]
        return self.table[others[0]] if others else {}


def read_study(
    study_result: Mapping[str, Any],
    *,
    method_axis: str | None = None,
    size_axis: str | None = None,
    teacher_axis: str | None = None,
) -> Study:
    """Check the object of ``study_result.json`` and sort its rows: their order in the file never matters.

    An axis that is given here goes before the file's ``roles``, and these before the axis of the part's
    own name (see ``axis_roles``). Raises DataError naming the row that is damaged or stands twice, and
    RecipeError for an axis that the study lacks.
    """
    try:
        axes: dict[str, list[str]] = {axis: list(labels) for axis, labels in study_result["axes"].items()}
        name, rows = str(study_result["name"]), list(study_result["rows"])
    except (KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"study_result.json: `name`, `axes` and `rows` are needed and one is missing or damaged ({error}); "
            "run the study again, finished runs are not repeated"
        ) from error
    for place, row in enumerate(rows):
        _check_row(place, row, axes)
    order = {axis: {label: i for i, label in enumerate(labels)} for axis, labels in axes.items()}
    rows.sort(key=lambda row: (*(order[axis][row["labels"][axis]] for axis in axes), row["seed"]))
    _refuse_twins(rows)
    given = {"method": method_axis, "size": size_axis, "teacher": teacher_axis}
    named = {**(study_result.get("roles") or {}), **{part: axis for part, axis in given.items() if axis is not None}}
    try:
        roles = axis_roles(list(axes), named)
    except ValueError as error:
        raise RecipeError(f"study {name!r}: {error}") from error
    return Study(
        name=name,
        axes=axes,
        runs=tuple(Run(r["labels"], r["seed"], r["result"]) for r in rows if r["status"] == "done"),
        method_axis=roles["method"],
        size_axis=roles["size"],
        teacher_axis=roles["teacher"],
        unfinished=tuple(
            {"labels": dict(r["labels"]), "seed": r["seed"], "status": r["status"], "error": r.get("error")}
            for r in rows
            if r["status"] != "done"
        ),
        baseline=study_result.get("baseline"),
    )


def choose_baseline(study: Study, baseline: str | None) -> str | None:
    """The method that the others are compared with: the one named here, else in the study file, else SFT, else CPT,
    else one without a teacher.

    None where there are no two methods to compare. Raises RecipeError for a label that the axis lacks.
    """
    labels = list(study.axes[study.method_axis]) if study.method_axis else []
    baseline = baseline if baseline is not None else study.baseline
    if baseline is not None and baseline not in labels:
        raise RecipeError(
            f"baseline={baseline}: the study has no such method; one of {', '.join(labels) or '(no axis is named as the method; set roles.method)'}."
            f"{did_you_mean(baseline, labels)}"
        )
    if len(study.methods) < 2:
        return None
    if baseline is not None:
        return baseline
    for wanted in ("sft", "cpt"):
        for method in study.methods:
            if method.lower() == wanted:
                return method
    return next((m for m in study.methods if not study.uses_teacher(m)), study.methods[0])


def is_score(metric: str) -> bool:
    """True where higher is better."""
    last = metric.lower().replace("/", ".").replace("-", "_").split(".")[-1]
    return not any(part in LOWER_IS_BETTER for part in last.split("_"))


def values(runs: Mapping[int, Run], metric: str) -> dict[int, float]:
    """The metric by seed, for the runs that have it."""
    found = {seed: run.value(metric) for seed, run in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def mean(numbers: Iterable[float]) -> float:
    """Arithmetic mean of at least one number."""
    listed = list(numbers)
    return math.fsum(listed) / len(listed)


def _check_row(place: int, row: Any, axes: Mapping[str, Sequence[str]]) -> None:
    where = f"study_result.json: rows[{place}]"
    for key in ("labels", "seed", "status"):
        if not isinstance(row, Mapping) or key not in row:
            raise DataError(f"{where} has no `{key}`; the file is damaged, run the study again to rewrite it")
    for axis, labels in axes.items():
        if row["labels"].get(axis) not in labels:
            raise DataError(f"{where}.labels.{axis}={row['labels'].get(axis)!r}: the axis has {', '.join(labels)}")
    if row["status"] == "done":
        nll = (row.get("result") or {}).get("nll")
        if not isinstance(nll, (int, float)) or not math.isfinite(nll):
            raise DataError(f"{where} is done and its result.nll is {nll!r}; delete its run directory and run it again")


def _refuse_twins(rows: Sequence[Mapping[str, Any]]) -> None:
    for first, second in pairwise(rows):
        if first["labels"] == second["labels"] and first["seed"] == second["seed"]:
            raise DataError(
                f"study_result.json: two rows for {dict(first['labels'])} and seed {first['seed']}; keep one of them"
            )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _median(numbers: Sequence[float]) -> float:
    ordered, middle = sorted(numbers), len(numbers) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
