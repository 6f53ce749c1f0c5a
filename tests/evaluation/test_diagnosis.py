"""Each warning from both sides of its boundary."""

from __future__ import annotations

import pytest

from stillhouse.evaluation.diagnosis import diagnose, gap_closed
from stillhouse.evaluation.nll import DomainNLL, NLLReport


def report(content_tokens: int = 1000, **nll_of: float) -> NLLReport:
    domains = {name: DomainNLL(nll, None, None, None, content_tokens, 0, 1) for name, nll in nll_of.items()}
    return NLLReport(sum(nll_of.values()) / len(nll_of), None, None, domains)


@pytest.mark.parametrize(
    ("before", "after", "teacher", "expected"),
    [
        (3.0, 2.0, 1.0, 0.5),
        (3.0, 0.5, 1.0, 1.25),
        (3.0, 3.5, 1.0, -0.25),
        (1.02, 1.01, 1.0, 0.5),
        (1.015, 1.01, 1.0, None),
        (1.0, 0.9, 1.4, None),
        (3.0, 2.0, None, None),
    ],
)
def test_gap_closed(before: float, after: float, teacher: float | None, expected: float | None) -> None:
    assert gap_closed(before, after, teacher) == (None if expected is None else pytest.approx(expected))


def test_a_good_run_gives_no_warning() -> None:
    ratios = [0.5, 1.0, 2.0]
    assert diagnose(teacher=report(a=1.0), before=report(a=3.0), after=report(a=1.5), gradient_ratios=ratios) == []
    assert diagnose(teacher=None, before=report(a=9.0), after=report(a=8.0)) == []


def test_a_teacher_worse_than_the_student_is_named_with_its_domain() -> None:
    # The measured case: 4.86 against 3.05 after training; before it the student was at 5.2.
    (warning,) = diagnose(
        teacher=report(knowledge=4.86, math=1.0),
        before=report(knowledge=5.2, math=2.0),
        after=report(knowledge=3.05, math=1.5),
    )
    assert warning.startswith("knowledge: the teacher is worse than the student after training (4.86 against 3.05")
    (warning,) = diagnose(teacher=report(a=3.0), before=report(a=2.0), after=report(a=2.01))
    assert "student before training (3.00 against 2.00" in warning
    assert diagnose(teacher=report(a=2.01), before=report(a=2.0), after=report(a=2.0)) == []


def test_too_far_above_the_teacher_is_no_evidence() -> None:
    (warning,) = diagnose(teacher=report(a=1.0), before=report(a=9.0), after=report(a=2.6))
    assert "1.60 nats/token above the teacher" in warning
    assert "no evidence" in warning
    assert diagnose(teacher=report(a=1.0), before=report(a=9.0), after=report(a=2.4)) == []


def test_a_student_that_got_worse() -> None:
    (warning,) = diagnose(teacher=None, before=report(a=2.0), after=report(a=2.1))
    assert "made the student worse (2.00 to 2.10" in warning
    assert diagnose(teacher=None, before=report(a=2.0), after=report(a=2.01)) == []


def test_small_test_sets() -> None:
    (warning,) = diagnose(teacher=None, before=report(a=2.0), after=report(199, a=1.0))
    assert "a: only 199 held-out content tokens" in warning
    assert diagnose(teacher=None, before=report(a=2.0), after=report(200, a=1.0)) == []


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.01, 0.04, 3.0], "nearly plain fine-tuning"),
        ([30.0, 25.0, 0.1], "hardly counted"),
        ([0.05], ""),
        ([20.0], ""),
    ],
)
def test_unbalanced_gradients(ratios: list[float], expected: str) -> None:
    found = diagnose(teacher=None, before=report(a=2.0), after=report(a=1.0), gradient_ratios=ratios)
    assert len(found) == bool(expected)
    assert expected in "".join(found)


def test_a_domain_that_one_report_lacks_is_passed_over() -> None:
    assert diagnose(teacher=report(b=1.0), before=report(c=2.0), after=report(a=1.0)) == []
