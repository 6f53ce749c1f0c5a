"""What the training loop holds when the mixture moves: policy, plan, measurements and stop rule together.

Call ``prepare(step)`` before every step; at the start of an interval it measures, moves the weights
and draws the plan, and returns a report for ``metrics.jsonl``. Otherwise it does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stillhouse.data.document import Int64Array
from stillhouse.mixture.discrepancy import DiscrepancyStop
from stillhouse.mixture.interval import IntervalPlan
from stillhouse.mixture.policy import Policy
from stillhouse.mixture.weights import FloatArray, floats_from_json, floats_to_json


@dataclass(frozen=True)
class DomainLosses:
    """Validation NLL per domain in nats per token, float64 [D], and the tokens behind it, int64 [D].

    Summed over ranks before the division. Where ``counts`` is 0 the NLL is not read.
    """

    nll: FloatArray
    counts: Int64Array


@dataclass(frozen=True)
class Measurements:
    """How to score the documents that drive the weights. The teacher is asked once in a run, then kept."""

    student: Callable[[], DomainLosses]
    teacher: Callable[[], DomainLosses]


class MixtureController:
    """Implements StepPlan over the whole run.

    ``measurements`` may be None for a policy that does not need them; given, the ratios are reported
    for that policy too. ``stop`` ends the run when the student has caught up, which needs measurements.
    """

    def __init__(
        self,
        policy: Policy,
        plan: IntervalPlan,
        *,
        measurements: Measurements | None = None,
        stop: DiscrepancyStop | None = None,
    ) -> None:
        assert policy.domains == plan.domains
        assert measurements is not None or not (policy.needs_measurements or stop is not None)
        self._policy, self._plan, self._measurements, self._stop = policy, plan, measurements, stop
        self._teacher_nll: FloatArray | None = None
        self.measured_seconds = 0.0
        """Time spent on measurements so far, the teacher's included: over the training time, the overhead."""

    @property
    def settled(self) -> bool:
        """Whether the discrepancy stop rule has ended the run."""
        return self._stop is not None and self._stop.reached

    def prepare(self, step: int) -> dict[str, Any] | None:
        """Make ``step`` ready. Every rank calls this; returns an interval's report when one begins.

        After the stop rule has fired, no plan is drawn: look at ``settled`` before training the step.
        Raises what the policy and the plan raise.
        """
        if self.settled or step // self._plan.interval_steps <= self._plan.interval:
            return None
        student = self._measure()
        if self.settled:
            return self._report(student, drawn=False)
        self._plan.advance(self._policy.weights())
        return self._report(student, drawn=True)

    def documents(self, step: int) -> Sequence[int]:
        """Document indices of a step that was prepared."""
        return self._plan.documents(step)

    def state_dict(self) -> dict[str, Any]:
        """JSON for a checkpoint; exact."""
        return {
            "policy": self._policy.state_dict(),
            "plan": self._plan.state_dict(),
            "teacher_nll": None if self._teacher_nll is None else floats_to_json(self._teacher_nll),
            "streak": 0 if self._stop is None else self._stop.streak,
            "measured_seconds": self.measured_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state``; TrainingError when it does not fit data or recipe."""
        self._policy.load_state_dict(state["policy"])
        self._plan.load_state_dict(state["plan"])
        self._teacher_nll = None if state["teacher_nll"] is None else floats_from_json(state["teacher_nll"])
        if self._stop is not None:
            self._stop.streak = state["streak"]
        self.measured_seconds = state["measured_seconds"]

    def _measure(self) -> FloatArray | None:
        """Score, tell the policy and the stop rule; returns the student's NLL [D], NaN where not measured."""
        if self._measurements is None:
            return None
        started = time.monotonic()
        if self._teacher_nll is None:
            teacher = self._measurements.teacher()
            self._teacher_nll = np.where(teacher.counts > 0, teacher.nll, np.nan)
        student = self._measurements.student()
        self.measured_seconds += time.monotonic() - started
        self._policy.update(student.nll, self._teacher_nll, student.counts)
        if self._stop is not None:
            self._stop.observe(self._policy.ratios[self._plan.domain_tokens > 0])
        return np.where(student.counts > 0, student.nll, np.nan)

    def _report(self, student: FloatArray | None, *, drawn: bool) -> dict[str, Any]:
        """The interval for ``metrics.jsonl``; None where nothing was measured or drawn."""
        rows: dict[str, dict[str, Any]] = {name: {} for name in self._plan.domains}
        for i, row in enumerate(rows.values()):
            row["ratio"] = _number(self._policy.ratios[i])
            row["student_nll"] = None if student is None else _number(student[i])
            row["teacher_nll"] = None if self._teacher_nll is None else _number(self._teacher_nll[i])
            if drawn:
                row.update(asdict(self._plan.draws[i]))
        return {
            "interval": self._plan.interval if drawn else None,
            "measured_seconds": self.measured_seconds,
            "domains": rows,
        }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
