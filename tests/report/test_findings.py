"""The sentences at the top of a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.report.findings import comparison_headline, domain_gap_closed, run_headline
from stillhouse.report.rundata import read_run

MakeRun = Callable[..., Path]


def headline_of(**values: Any) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        result["headline"] |= values

    return change


def test_the_share_of_the_gap_and_the_numbers(make_run: MakeRun) -> None:
    headline = run_headline(read_run(make_run()))
    # Means of six domains: before 16.51/6, after 8.37/6, teacher 8.20/6; (16.51-8.37)/(16.51-8.20) = 0.9795.
    assert headline.title == "Training closed 98 % of the gap to the teacher."
    assert "went from 2.75 to 1.40 nats per token; the teacher is at 1.37" in headline.details[0]


def test_kd_from_a_worse_teacher_is_named_by_domain(make_run: MakeRun) -> None:
    headline = run_headline(read_run(make_run()))
    assert headline.details[1] == (
        "The teacher is worse than the student in arithmetic, classification and extraction: "
        "KD pulls the student towards a worse model in each of them."
    )


def test_sft_beside_a_worse_teacher_says_that_distilling_would_not_help(make_run: MakeRun) -> None:
    headline = run_headline(read_run(make_run("sft", "sft")))
    assert "worse than the trained student in arithmetic" in headline.details[1]
    assert "would not help" in headline.details[1]


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ({"student_before": 1.0, "student_after": 1.5}, "Training made the student worse on the held-out rows."),
        (
            {"student_before": 1.0, "student_after": 0.9, "teacher": 1.2, "gap_closed": None},
            "The teacher was no better than the untrained student, so there was no gap to close.",
        ),
        ({"gap_closed": 1.2}, "The trained student predicts the held-out answers better than its teacher."),
    ],
)
def test_other_titles(make_run: MakeRun, values: dict[str, Any], title: str) -> None:
    assert run_headline(read_run(make_run(change=headline_of(**values)))).title == title


def test_without_a_teacher(make_run: MakeRun) -> None:
    headline = run_headline(read_run(make_run("alone", "sft", teacher=False)))
    assert headline.title == "Training took the student from 2.75 to 1.40 nats per token."
    assert len(headline.details) == 1


def test_an_unfinished_run_says_so(make_run: MakeRun) -> None:
    headline = run_headline(read_run(make_run(finished=False)))
    assert headline.title == "This run is not finished: its last record is of step 20."
    assert "2.75 nats/token at step 0" in headline.details[0]
    assert "at step 16" in headline.details[0]


def test_domain_gap() -> None:
    assert domain_gap_closed(3.0, 2.0, 1.0) == 0.5
    assert domain_gap_closed(3.0, 2.0, 2.99) is None
    assert domain_gap_closed(3.0, 2.0, None) is None


@pytest.mark.parametrize(
    ("sft", "title"),
    [(1.2, "SFT beats KD here."), (1.6, "KD beats SFT here."), (1.402, "KD and SFT are level here.")],
)
def test_the_comparison_says_which_is_better(make_run: MakeRun, sft: float, title: str) -> None:
    runs = [
        read_run(make_run("kd", "kd", change=headline_of(student_after=1.4))),
        read_run(make_run("sft", "sft", change=headline_of(student_after=sft))),
    ]
    headline = comparison_headline(runs, ["a", "b"])
    assert headline.title == title
    assert headline.details[-1].startswith("All runs saw the same number of training tokens")


def test_a_small_lead_is_called_small(make_run: MakeRun) -> None:
    runs = [
        read_run(make_run("kd", "kd", change=headline_of(student_after=1.40))),
        read_run(make_run("sft", "sft", change=headline_of(student_after=1.43))),
    ]
    assert "The lead of 0.030 is small; other seeds may turn it round." in comparison_headline(runs, ["a", "b"]).details


def test_runs_that_differ_in_more_than_the_method_are_marked(make_run: MakeRun) -> None:
    def more_tokens(result: dict[str, Any]) -> None:
        result["training"]["tokens"] *= 2
        result["headline"]["student_before"] += 1

    runs = [read_run(make_run("one", "kd")), read_run(make_run("two", "kd", change=more_tokens))]
    headline = comparison_headline(runs, ["one", "two"])
    assert headline.title == "one and two are level here."
    assert "differ in their students at the start and training tokens" in headline.details[-1]
