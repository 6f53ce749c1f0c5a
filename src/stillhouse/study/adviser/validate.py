"""How often the adviser is right: it is shown a study's smaller sizes and asked about the larger ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.study.adviser.evidence import evidence_from_study
from stillhouse.study.adviser.recommend import LEVEL_NATS, choose
from stillhouse.study.analysis.analyse import plain
from stillhouse.study.analysis.gains import gains
from stillhouse.study.analysis.intervals import Interval, wilson_interval
from stillhouse.study.analysis.rows import Arm, choose_baseline, read_study

Outcome = Literal["right", "wrong", "undecided", "unclear"]


@dataclass(frozen=True)
class Trial:
    """One question: from sizes up to ``from_rows``, is the method better at ``to_rows``?

    ``unclear``: the study itself cannot tell at that size, so there is no right answer.
    """

    arm: Arm
    from_rows: float
    to_rows: float
    verdict: str
    predicted: float | None
    truth: Interval
    outcome: Outcome


@dataclass(frozen=True)
class HitRate:
    """``rate``: right over right and wrong, with Wilson's interval; None where nothing was decided.

    The trials share runs and seeds, so they are not independent and the interval is too narrow.
    """

    right: int
    wrong: int
    undecided: int
    unclear: int
    rate: Interval | None
    trials: list[Trial]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON has them."""
        out = plain(self)
        assert isinstance(out, dict)
        return out

    def sentence(self) -> str:
        """The rate in words."""
        rest = f"{self.undecided} times it did not decide, and {self.unclear} times the study itself cannot tell who was better"
        if self.rate is None:
            return f"The adviser decided in none of {len(self.trials)} held-out cells: {rest}."
        return (
            f"The adviser was right in {self.right} of {self.right + self.wrong} held-out cells where it decided "
            f"({self.rate.mean:.0%}, Wilson interval {self.rate.low or 0:.0%} to {self.rate.high or 0:.0%}, too narrow because "
            f"cells share runs); {rest}."
        ).replace("%", " %")


def validate_adviser(
    study_result: Mapping[str, Any],
    *,
    method_axis: str | None = None,
    size_axis: str | None = None,
    teacher_axis: str | None = None,
    baseline: str | None = None,
) -> HitRate:
    """Ask about every larger size of every arm from each set of at least two smaller sizes.

    Truth is the paired gain measured at the larger size: an arm is better or worse where its interval
    excludes zero, and level where the whole interval lies within ``LEVEL_NATS``. Raises as ``read_study``.
    """
    study = read_study(study_result, method_axis=method_axis, size_axis=size_axis, teacher_axis=teacher_axis)
    base = choose_baseline(study, baseline)
    trials = []
    sizes = sorted({size.rows for size in study.sizes})
    for gain in gains(study, base) if base is not None else []:
        for shown in sizes[1:]:
            if gain.rows is None or shown >= gain.rows:
                continue
            evidence = evidence_from_study(study, arm=gain.arm, baseline=base, full_rows=gain.rows, up_to_rows=shown)
            if len(evidence.sizes) < 2 or evidence.sizes[-1] != shown:
                continue
            answer = choose(evidence)
            predicted = answer.prediction.mean if answer.prediction is not None else None
            outcome = judge(answer.verdict, gain.difference)
            trials.append(Trial(gain.arm, shown, gain.rows, answer.verdict, predicted, gain.difference, outcome))
    counts = Counter(trial.outcome for trial in trials)
    decided = counts["right"] + counts["wrong"]
    rate = wilson_interval(counts["right"], decided) if decided else None
    return HitRate(counts["right"], counts["wrong"], counts["undecided"], counts["unclear"], rate, trials)


def judge(verdict: str, truth: Interval) -> Outcome:
    """Compare a verdict with what the larger size showed."""
    if verdict == "cannot_tell":
        return "undecided"
    low, high = truth.low, truth.high
    level = low is not None and high is not None and low > -LEVEL_NATS and high < LEVEL_NATS
    if truth.sign == 0 and not level:
        return "unclear"
    if verdict == "either":
        return "right" if level else "wrong"
    return "right" if truth.sign == (1 if verdict == "method" else -1) else "wrong"
