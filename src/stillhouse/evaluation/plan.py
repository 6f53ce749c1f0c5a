"""Which rows get which score: what applies by itself, or what somebody asked for by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.data.rows import Row
from stillhouse.errors import DataError
from stillhouse.evaluation.held_out import spread_over_domains
from stillhouse.evaluation.metrics.choices import question_of
from stillhouse.evaluation.metrics.sandbox import Sandbox
from stillhouse.evaluation.metrics.table import EXACT_MATCH, GENERATED, GeneratedMetric, code_metric
from stillhouse.recipe import MetricName

Metrics = Literal["auto"] | tuple[MetricName, ...]
_NEEDS = {
    "exact_match": "an `answer`",
    "rouge_l": "`references` or a gold turn",
    "chrf": "`references` or a gold turn",
    "ifeval": "`instruction_id_list` with `kwargs`",
    "code": "`test_list`, or `prompt`, `entry_point` and `test`",
    "multiple_choice": "`choices` (a list of strings) and `answer`",
}


@dataclass(frozen=True)
class MetricRequest:
    """What to score: ``auto`` is everything that applies.

    ``generated_rows`` bounds the rows of each score that needs generated text, ``choice_rows`` the
    questions scored by likelihood (None: all). Without ``sandbox`` no generated code runs.
    """

    metrics: Metrics
    generated_rows: int
    choice_rows: int | None
    seed: int
    sandbox: Sandbox | None = None


@dataclass(frozen=True)
class MetricPlan:
    """The rows of each score of generated text, the rows of multiple choice, and what is not scored and why."""

    generated: tuple[tuple[GeneratedMetric, tuple[Row, ...]], ...]
    choice_rows: tuple[Row, ...]
    calibrated: bool
    notes: tuple[str, ...]


def plan_metrics(rows: Iterable[Row], request: MetricRequest) -> MetricPlan:
    """Choose the rows of each score, spread evenly over the domains.

    ``auto`` leaves out, with a note, what cannot be scored: rows that carry something wrong, and
    scores whose package is missing. What is asked for by name must be possible.

    Raises:
        DataError: a metric that was named has no row here, or a row of it carries something wrong.
        MissingDependencyError: a metric that was named needs a package that is not installed.
    """
    prompted = [row for row in rows if row.text is None]
    notes: list[str] = []
    generated = []
    for metric in _table(request.sandbox):
        chosen = _rows_of(metric, prompted, request, notes)
        if chosen:
            generated.append((metric, chosen))
    choice_rows = _choice_rows(prompted, request, notes)
    if request.metrics == "auto" and request.sandbox is None:
        tested = sum(row.checks.code is not None for row in prompted)
        if tested:
            notes.append(f"{tested} rows carry tests for code, which is not run without --execute-code")
    return MetricPlan(tuple(generated), choice_rows, _wanted("token_ece", request), tuple(notes))


def _table(sandbox: Sandbox | None) -> list[GeneratedMetric]:
    return [*GENERATED.values(), *([] if sandbox is None else [code_metric(sandbox)])]


def _wanted(name: MetricName, request: MetricRequest) -> bool:
    return request.metrics == "auto" or name in request.metrics


def _rows_of(metric: GeneratedMetric, rows: Sequence[Row], request: MetricRequest, notes: list[str]) -> tuple[Row, ...]:
    if not _wanted(metric.name, request):
        return ()
    by_name = request.metrics != "auto"
    fitting = [row for row in rows if metric.applies(row) or (by_name and metric.also(row))]
    if by_name:
        _refuse_none(metric.name, fitting)
        for row in fitting:
            metric.require(row)
    else:
        missing = sorted({text for row in fitting if (text := metric.missing_package(row)) is not None})
        notes += missing
        fitting = _usable([row for row in fitting if metric.missing_package(row) is None], metric.check, notes)
    # The purpose of exact match is the one that its rows have always been drawn with.
    purpose = "scored-rows" if metric is EXACT_MATCH else f"scored-rows:{metric.name}"
    return spread_over_domains(fitting, request.generated_rows, seed=request.seed, purpose=purpose)


def _choice_rows(rows: Sequence[Row], request: MetricRequest, notes: list[str]) -> tuple[Row, ...]:
    if not _wanted("multiple_choice", request):
        return ()
    fitting = [row for row in rows if len(row.checks.choices) > 1 and row.answer is not None]
    if request.metrics == "auto":
        fitting = _usable(fitting, question_of, notes)
    else:
        _refuse_none("multiple_choice", fitting)
    count = len(fitting) if request.choice_rows is None else request.choice_rows
    return spread_over_domains(fitting, count, seed=request.seed, purpose="scored-rows:multiple_choice")


def _usable(rows: Sequence[Row], check: Callable[[Row], object], notes: list[str]) -> list[Row]:
    """Return the rows that pass, and note how many do not and what is wrong with the first."""
    usable, problems = [], []
    for row in rows:
        try:
            check(row)
        except DataError as error:
            problems.append(str(error))
        else:
            usable.append(row)
    if problems:
        notes.append(f"{len(problems)} rows are left out of a score; the first: {problems[0]}")
    return usable


def _refuse_none(name: str, rows: Sequence[Row]) -> None:
    if not rows:
        raise DataError(
            f"the metric {name} was asked for, and no row has {_NEEDS[name]}; leave it out, or add the columns"
        )
