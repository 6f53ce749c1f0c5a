"""Which rows get which score, by themselves and by name."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest

from stillhouse.data.checkable import Checks, CodeTest, Instruction
from stillhouse.data.rows import Message, Row
from stillhouse.errors import DataError, MissingDependencyError
from stillhouse.evaluation.metrics.sandbox import Sandbox
from stillhouse.evaluation.metrics.table import GENERATED, references_of
from stillhouse.evaluation.plan import MetricRequest, Metrics, plan_metrics


def row(number: int, *, answer: str | None = None, gold: bool = True, **checks: object) -> Row:
    turns = (Message("user", f"Question {number}"), *((Message("assistant", "gold"),) if gold else ()))
    return Row(turns, None, "d", answer, str(number), f"rows.jsonl:{number}", checks=Checks(**checks))  # type: ignore[arg-type]


ANSWERED = row(1, answer="7")
CHOICE = row(2, answer="b", choices=("a", "b"))
REFERENCED = row(3, references=("x", "y"))
INSTRUCTED = row(4, gold=False, instructions=(Instruction("punctuation:no_comma"),))
TESTED = row(5, code=CodeTest("assert f()"))
PLAIN = row(6)
TEXT = replace(PLAIN, messages=None, text="raw", id="7")
ROWS = [ANSWERED, CHOICE, REFERENCED, INSTRUCTED, TESTED, PLAIN, TEXT]


def request(metrics: Metrics = "auto", sandbox: Sandbox | None = None, choice_rows: int | None = None) -> MetricRequest:
    return MetricRequest(metrics, generated_rows=10, choice_rows=choice_rows, seed=0, sandbox=sandbox)


def test_every_row_gets_what_it_allows() -> None:
    plan = plan_metrics(ROWS, request())
    assert {metric.name: {r.id for r in rows} for metric, rows in plan.generated} == {
        "exact_match": {"1", "2"},
        "rouge_l": {"3"},
        "chrf": {"3"},
        "ifeval": {"4"},
    }
    assert plan.choice_rows == (CHOICE,)
    assert plan.calibrated
    assert plan.notes == ("1 rows carry tests for code, which is not run without --execute-code",)


def test_code_runs_only_with_a_sandbox() -> None:
    plan = plan_metrics(ROWS, request(sandbox=Sandbox()))
    assert [rows for metric, rows in plan.generated if metric.name == "code"] == [(TESTED,)]
    assert plan.notes == ()


def test_names_choose_and_may_reach_further() -> None:
    plan = plan_metrics(ROWS, request(("chrf",)))
    ((metric, rows),) = plan.generated
    assert metric.name == "chrf"
    # By name, a gold turn serves where there is no reference.
    assert {r.id for r in rows} == {"1", "2", "3", "5", "6"}
    assert references_of(REFERENCED) == ("x", "y")
    assert references_of(PLAIN) == ("gold",)
    assert (plan.choice_rows, plan.calibrated) == ((), False)
    assert plan_metrics(ROWS, request(("token_ece",))).calibrated
    nothing = plan_metrics(ROWS, request(()))
    assert (nothing.generated, nothing.choice_rows, nothing.calibrated, nothing.notes) == ((), (), False, ())


@pytest.mark.parametrize("name", ["exact_match", "rouge_l", "ifeval", "multiple_choice", "code"])
def test_a_name_without_a_row_is_refused(name: str) -> None:
    sandbox = Sandbox() if name == "code" else None
    with pytest.raises(DataError, match=f"the metric {name} was asked for, and no row has"):
        plan_metrics([TEXT], request((name,), sandbox))  # type: ignore[arg-type]


def test_limits_are_spread_over_domains() -> None:
    many = [replace(row(i, answer="b", choices=("a", "b")), domain="xy"[i % 2]) for i in range(20)]
    plan = plan_metrics(many, replace(request(choice_rows=4), generated_rows=6))
    assert [r.domain for r in plan.choice_rows] == ["x", "y", "x", "y"]
    assert [r.domain for r in plan.generated[0][1]] == ["x", "y"] * 3
    assert len(plan_metrics(many, request()).choice_rows) == 20
    assert plan_metrics(many, request(choice_rows=0)).choice_rows == ()


def test_a_wrong_row_is_left_out_by_itself_and_refused_by_name() -> None:
    unknown = row(8, gold=False, instructions=(Instruction("punctuation:no_such"),))
    astray = row(9, answer="c", choices=("a", "b"))
    plan = plan_metrics([INSTRUCTED, unknown, CHOICE, astray], request())
    assert {m.name: rows for m, rows in plan.generated}["ifeval"] == (INSTRUCTED,)
    assert plan.choice_rows == (CHOICE,)
    assert [note.split(":")[0] for note in plan.notes] == ["1 rows are left out of a score; the first"] * 2
    with pytest.raises(DataError, match=r"rows\.jsonl:8"):
        plan_metrics([INSTRUCTED, unknown], request(("ifeval",)))


def test_a_missing_package_is_a_note_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> object:
        return None if name in ("rouge_score", "langdetect") else found(name, package)

    monkeypatch.setattr("importlib.util.find_spec", without)
    language = row(8, gold=False, instructions=(Instruction("language:response_language", (("language", "de"),)),))
    plan = plan_metrics([REFERENCED, INSTRUCTED, language], request())
    assert {m.name for m, _ in plan.generated} == {"chrf", "ifeval"}
    assert {m.name: rows for m, rows in plan.generated}["ifeval"] == (INSTRUCTED,)
    assert plan.notes == (
        "the metric rouge_l needs rouge-score; run `pip install 'stillhouse[metrics]'`",
        "the metric ifeval needs langdetect; run `pip install 'stillhouse[metrics]'`",
    )
    with pytest.raises(MissingDependencyError, match="rouge_l needs rouge-score"):
        plan_metrics([REFERENCED], request(("rouge_l",)))


def test_every_metric_scores_its_row() -> None:
    for target, name in ((ANSWERED, "exact_match"), (INSTRUCTED, "ifeval")):
        parts = GENERATED[name].parts(target, "7")
        assert all(part.value == part.weight for part in parts.values())
    assert GENERATED["chrf"].parts(REFERENCED, "y")["chrf"].value == 1
