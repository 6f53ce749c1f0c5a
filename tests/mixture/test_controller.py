from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from stillhouse.data.document import Document, DocumentSet
from stillhouse.errors import TrainingError
from stillhouse.mixture.controller import DomainLosses, Measurements, MixtureController
from stillhouse.mixture.discrepancy import DiscrepancyStop
from stillhouse.mixture.interval import IntervalPlan
from stillhouse.mixture.policy import DDKPolicy, Policy, StaticPolicy
from stillhouse.mixture.weights import proportional_weights

DOMAINS = ("a", "b")
STEPS, INTERVAL = 14, 4


def documents() -> DocumentSet:
    lengths = np.random.default_rng(0).integers(2, 12, 60)
    parts = [
        Document(np.zeros(n, np.int32), np.ones(n, np.bool_), i % 2, i.to_bytes(16, "little"))
        for i, n in enumerate(lengths.tolist())
    ]
    return DocumentSet.build(parts, range(60), DOMAINS, "tokenizer")


class Student:
    """Catches up a little in every interval, by the step it is at, as a deterministic model would."""

    def __init__(self, speed: float = 0.1) -> None:
        self.speed, self.step, self.calls, self.teacher_calls = speed, 0, 0, 0

    def score(self) -> DomainLosses:
        self.calls += 1
        nll = np.array([2.0 + max(0.0, 1.0 - self.speed * self.step), 1.5 + max(0.0, 0.4 - self.speed * self.step)])
        return DomainLosses(nll, np.array([50, 50]))

    def score_teacher(self) -> DomainLosses:
        self.teacher_calls += 1
        return DomainLosses(np.array([2.0, 1.5]), np.array([50, 50]))

    @property
    def measurements(self) -> Measurements:
        return Measurements(self.score, self.score_teacher)


def controller(
    student: Student, *, policy: Policy | None = None, stop: DiscrepancyStop | None = None
) -> MixtureController:
    plan = IntervalPlan(documents(), seed=3, interval_steps=INTERVAL, num_steps=STEPS, tokens_per_step=30)
    chosen = policy or DDKPolicy(DOMAINS, plan.domain_tokens)
    return MixtureController(chosen, plan, measurements=student.measurements, stop=stop)


def train(
    mixture: MixtureController, student: Student, start: int = 0, end: int = STEPS
) -> tuple[list[list[int]], list[Any]]:
    """The loop's part: prepare, look at the stop rule, take the documents."""
    seen, reports = [], []
    for step in range(start, end):
        student.step = step
        report = mixture.prepare(step)
        if report is not None:
            reports.append({k: v for k, v in report.items() if k != "measured_seconds"})
        if mixture.settled:
            break
        seen.append(list(mixture.documents(step)))
    return seen, reports


def test_one_measurement_per_interval_and_one_of_the_teacher() -> None:
    student = Student()
    mixture = controller(student)
    seen, reports = train(mixture, student)
    assert len(seen) == STEPS
    assert (student.calls, student.teacher_calls) == (4, 1)  # steps 0, 4, 8, 12
    assert [r["interval"] for r in reports] == [0, 1, 2, 3]
    assert mixture.measured_seconds > 0
    first, second = (r["domains"] for r in reports[:2])
    assert first["a"]["ratio"] == pytest.approx(np.exp(1.0))
    assert (first["a"]["student_nll"], first["a"]["teacher_nll"]) == (3.0, 2.0)
    assert second["a"]["weight"] > second["b"]["weight"]  # a lags more
    assert sum(d["quota_tokens"] for d in first.values()) == INTERVAL * 30
    assert json.loads(json.dumps(reports, allow_nan=False)) == reports


@pytest.mark.parametrize("killed", [1, 4, 6, 8, 13])
def test_a_run_killed_anywhere_resumes_bit_for_bit(killed: int) -> None:
    student = Student()
    whole, whole_reports = train(controller(student), student)
    first = controller(student)
    before, reports = train(first, student, end=killed)
    resumed = controller(student)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    after, more = train(resumed, student, start=killed)
    assert before + after == whole
    assert reports + more == whole_reports


def test_the_teacher_is_not_asked_again_after_a_resumption() -> None:
    student = Student()
    first = controller(student)
    train(first, student, end=6)
    resumed = controller(student)
    resumed.load_state_dict(first.state_dict())
    train(resumed, student, start=6)
    assert student.teacher_calls == 1
    assert resumed.measured_seconds >= first.measured_seconds


def test_stop_rule_ends_the_run_at_the_second_interval_within_the_threshold() -> None:
    student = Student(speed=0.25)  # caught up in both domains from step 4 on
    mixture = controller(student, stop=DiscrepancyStop(0.02))
    seen, reports = train(mixture, student)
    assert mixture.settled
    assert len(seen) == 8  # seen at steps 4 and 8
    assert reports[-1]["interval"] is None
    assert reports[-1]["domains"]["a"]["ratio"] == 1.0
    assert "weight" not in reports[-1]["domains"]["a"]
    assert mixture.prepare(8) is None


def test_the_streak_of_the_stop_rule_survives_a_resumption() -> None:
    student = Student(speed=0.25)
    first = controller(student, stop=DiscrepancyStop(0.02))
    train(first, student, end=6)
    resumed = controller(student, stop=DiscrepancyStop(0.02))
    resumed.load_state_dict(first.state_dict())
    assert len(train(resumed, student, start=6)[0]) == 2


def test_a_static_policy_needs_no_measurement() -> None:
    plan = IntervalPlan(documents(), seed=3, interval_steps=INTERVAL, num_steps=STEPS, tokens_per_step=30)
    policy = StaticPolicy("proportional", DOMAINS, proportional_weights(DOMAINS, plan.domain_tokens))
    mixture = MixtureController(policy, plan)
    seen, reports = train(mixture, Student())
    assert len(seen) == STEPS
    assert {r["domains"]["a"]["ratio"] for r in reports} == {None}
    assert len({r["domains"]["a"]["weight"] for r in reports}) == 1
    assert not mixture.settled


def test_a_static_policy_may_be_measured_for_the_report() -> None:
    student = Student()
    policy = StaticPolicy("equal", DOMAINS, np.array([0.5, 0.5]))
    reports = train(controller(student, policy=policy), student)[1]
    assert [r["domains"]["b"]["ratio"] for r in reports[:2]] == pytest.approx([np.exp(0.4), 1.0])


def test_state_of_another_policy_is_refused() -> None:
    student = Student()
    state = controller(student, policy=StaticPolicy("equal", DOMAINS, np.array([0.5, 0.5]))).state_dict()
    with pytest.raises(TrainingError, match="made by 'equal' and the recipe asks for 'ddk'"):
        controller(student).load_state_dict(state)
