"""The scores that a generated answer can get, and which rows each applies to."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stillhouse.data.rows import Row
from stillhouse.errors import MissingDependencyError
from stillhouse.evaluation.exact_match import exact_match
from stillhouse.evaluation.ifeval.check import check_arguments, instruction_parts
from stillhouse.evaluation.metrics.code import run_tests
from stillhouse.evaluation.metrics.overlap import INSTALL, chrf, rouge_l
from stillhouse.evaluation.metrics.sandbox import Sandbox
from stillhouse.evaluation.scores import Part
from stillhouse.recipe import MetricName

LANGUAGE = "language:response_language"


def _no_package(_: Row) -> str | None:
    return None


def _no_check(_: Row) -> None:
    return None


@dataclass(frozen=True)
class GeneratedMetric:
    """A score of generated text.

    ``applies`` says which rows it is for, and ``also`` which more where the user asks for it by
    name. ``package`` names the module that a row needs, ``check`` raises DataError for a row that
    carries something wrong. ``parts`` maps row and text to the scores that the answer adds to.
    """

    name: MetricName
    applies: Callable[[Row], bool]
    parts: Callable[[Row, str], dict[str, Part]]
    also: Callable[[Row], bool] = lambda _: False
    package: Callable[[Row], str | None] = _no_package
    check: Callable[[Row], None] = _no_check

    def missing_package(self, row: Row) -> str | None:
        """Return what is wrong where the row needs a package that is not installed."""
        package = self.package(row)
        if package is None or importlib.util.find_spec(package) is not None:
            return None
        return f"the metric {self.name} needs {package.replace('_', '-')}; run `{INSTALL}`"

    def require(self, row: Row) -> None:
        """Raise MissingDependencyError, or the DataError of a row that carries something wrong."""
        missing = self.missing_package(row)
        if missing is not None:
            raise MissingDependencyError(missing)
        self.check(row)


def references_of(row: Row) -> tuple[str, ...]:
    """Return the row's references, else its gold turn."""
    if row.checks.references or not has_gold(row):
        return row.checks.references
    return ((row.messages or ())[-1].content,)


def has_gold(row: Row) -> bool:
    """Whether the row is a conversation that ends with an answer."""
    return bool(row.messages) and (row.messages or ())[-1].role == "assistant"


def _overlap(name: MetricName, score: Callable[[str, tuple[str, ...]], float], package: str) -> GeneratedMetric:
    return GeneratedMetric(
        name,
        applies=lambda row: bool(row.checks.references),
        also=has_gold,
        package=lambda _: package,
        parts=lambda row, text: {name: Part(score(text, references_of(row)))},
    )


EXACT_MATCH = GeneratedMetric(
    "exact_match",
    applies=lambda row: row.answer is not None,
    parts=lambda row, text: {"exact_match": Part(float(exact_match(text, row.answer or "")))},
)

IFEVAL = GeneratedMetric(
    "ifeval",
    applies=lambda row: bool(row.checks.instructions),
    package=lambda row: "langdetect" if any(i.id == LANGUAGE for i in row.checks.instructions) else None,
    check=lambda row: check_arguments(row.checks.instructions, row.where),
    parts=lambda row, text: instruction_parts(text, row.checks.instructions),
)

GENERATED: Mapping[str, GeneratedMetric] = {
    metric.name: metric
    for metric in (
        EXACT_MATCH,
        _overlap("rouge_l", rouge_l, "rouge_score"),
        _overlap("chrf", chrf, "sacrebleu"),
        IFEVAL,
    )
}


def code_metric(sandbox: Sandbox) -> GeneratedMetric:
    """Return pass@1 on the rows' tests: it runs what the model wrote, so nobody gets it unasked."""

    def parts(row: Row, text: str) -> dict[str, Part]:
        assert row.checks.code is not None
        return {"code": Part(float(run_tests(text, row.checks.code, sandbox).passed))}

    return GeneratedMetric("code", applies=lambda row: row.checks.code is not None, parts=parts)
