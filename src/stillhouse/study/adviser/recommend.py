"""The advice itself, a pure function of the evidence: every answer may be that it cannot be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.randomness import numpy_generator
from stillhouse.study.adviser.evidence import Evidence
from stillhouse.study.adviser.predict import MAX_FACTOR, Prediction, predict_doubling, predict_gain, predict_loss
from stillhouse.study.analysis.analyse import plain
from stillhouse.study.analysis.crossover import Crossover, find_crossover
from stillhouse.study.analysis.findings import NO_EVIDENCE_NATS
from stillhouse.study.analysis.gains import MIN_GAP_NATS
from stillhouse.study.analysis.intervals import Interval, t_interval
from stillhouse.study.analysis.rows import mean
from stillhouse.study.analysis.wording import number, rows_text, seeds_text

LEVEL_NATS = 0.01
"""Methods that differ by less than this are as good as each other, and the cheaper one is to be preferred."""
WORTH_FOLLOWING, NOT_WORTH_FOLLOWING = 2.0, 1.2
"""Largest over smallest perplexity ratio of the domains: above the first a mixture that follows the gap has
something to shift (DDK's own setting), below the second it has not."""
DRAWS = 2000

Choice = Literal["method", "baseline", "either", "cannot_tell"]
YesNo = Literal["yes", "no", "cannot_tell"]


@dataclass(frozen=True)
class Answer:
    """One question: its verdict, the numbers behind it, and both in a sentence."""

    verdict: str
    sentence: str
    prediction: Prediction | None = None


@dataclass(frozen=True)
class DomainAnswer:
    """Which domains lag behind the teacher.

    ``ratios``: perplexity over the teacher's. ``lagging``: those clearly above the mean of all.
    ``ddk_weights``: the weights that DDK would start from (Eq. 1, a softmax of the ratios).
    """

    verdict: YesNo
    sentence: str
    ratios: dict[str, Interval]
    lagging: list[str]
    ddk_weights: dict[str, float]


@dataclass(frozen=True)
class Advice:
    """``choice.verdict`` is ``method`` (distil), ``baseline`` (do not), ``either`` or ``cannot_tell``."""

    method: str
    baseline: str
    full_rows: float
    choice: Answer
    teacher: Answer
    synthetic: Answer
    domains: DomainAnswer
    crossover: Crossover | None
    crossover_sentence: str
    cannot_tell: list[str]
    assumptions: list[str]

    @property
    def sentences(self) -> list[str]:
        """The advice for people, the choice first."""
        return [
            self.choice.sentence,
            self.teacher.sentence,
            self.crossover_sentence,
            self.synthetic.sentence,
            self.domains.sentence,
        ]

    def to_json(self) -> dict[str, Any]:
        """The ``advice`` object of ``advice.json``."""
        out = plain(self)
        assert isinstance(out, dict)
        return {"sentences": self.sentences, **out}


def recommend(evidence: Evidence) -> Advice:
    """Answer all questions from the evidence. Deterministic; nothing is measured here."""
    choice = choose(evidence)
    teacher = teacher_is_strong_enough(evidence)
    crossover = find_crossover(
        evidence.baseline_losses, evidence.method_losses, numpy_generator(0, "adviser"), draws=DRAWS
    )
    return Advice(
        method=evidence.method,
        baseline=evidence.baseline,
        full_rows=evidence.full_rows,
        choice=choice,
        teacher=teacher,
        synthetic=synthetic_data_would_help(evidence, choice, teacher),
        domains=lagging_domains(evidence),
        crossover=crossover,
        crossover_sentence=_crossover_sentence(evidence, crossover),
        cannot_tell=_cannot_tell(evidence),
        assumptions=list(evidence.assumptions),
    )


def choose(evidence: Evidence) -> Answer:
    """The method or the baseline at the full size: only where the whole predicted interval says so."""
    prediction = predict_gain(evidence)
    method, baseline = evidence.method, evidence.baseline
    reason = _no_choice(evidence, prediction)
    if prediction is None or reason is not None:
        return Answer(
            "cannot_tell", f"Whether {method} or {baseline} is better here cannot be told: {reason}.", prediction
        )
    low, high = prediction.low, prediction.high
    assert low is not None
    assert high is not None
    there = f"at {rows_text(evidence.full_rows)}"
    gain = f"the predicted gain of {method} over {baseline} {there} is {_span(prediction)}"
    if low > -LEVEL_NATS and high < LEVEL_NATS:
        return Answer("either", f"{method} and {baseline} will be level: {gain}. Take the cheaper one.", prediction)
    if low > 0:
        return Answer("method", f"Use {method}: {gain}.", prediction)
    if high < 0:
        return Answer("baseline", f"Use {baseline}: {gain}.", prediction)
    return Answer("cannot_tell", f"Whether {method} or {baseline} is better here cannot be told: {gain}.", prediction)


def teacher_is_strong_enough(evidence: Evidence) -> Answer:
    """Does the teacher predict the held-out rows better than the baseline student will at the full size?"""
    measured, teacher = evidence.measurement, evidence.teacher_nll
    if teacher is None and measured is not None:
        teacher = measured.macro("teacher_nll")
    if teacher is None:
        return Answer("cannot_tell", "Whether the teacher is strong enough cannot be told: its NLL is not known.")
    if measured is not None and measured.macro("student_nll") < teacher:
        return Answer(
            "no",
            f"The teacher is too weak: on your held-out rows it has {number(teacher)} nats/token and the untrained student "
            f"{number(measured.macro('student_nll'))}. Fine-tune the teacher on your rows first, or take a stronger one.",
        )
    loss = predict_loss(evidence, evidence.baseline_losses)
    if loss is None:
        return Answer(
            "cannot_tell",
            f"Whether the teacher is strong enough cannot be told without a pilot of two sizes; it has {number(teacher)} "
            "nats/token on your held-out rows.",
        )
    room = loss.shifted(-teacher)
    numbers = (
        f"it has {number(teacher)} nats/token on your held-out rows, and {evidence.baseline} at "
        f"{rows_text(evidence.full_rows)} is predicted to end above that by {_span(room)}"
    )
    if room.low is None or room.high is None or room.too_far:
        return Answer("cannot_tell", f"Whether the teacher is strong enough cannot be told: {numbers}.", room)
    if room.low > MIN_GAP_NATS:
        return Answer("yes", f"The teacher is strong enough: {numbers}.", room)
    if room.high < MIN_GAP_NATS:
        return Answer(
            "no",
            f"The teacher is too weak for so much data: {numbers}. Fine-tune it on your rows first, or take a stronger one.",
            room,
        )
    return Answer("cannot_tell", f"Whether the teacher is strong enough cannot be told: {numbers}.", room)


def synthetic_data_would_help(evidence: Evidence, choice: Answer, teacher: Answer) -> Answer:
    """Would rows that the teacher writes help? Only if more rows help, and the teacher knows more than the student."""
    losses = evidence.baseline_losses if choice.verdict == "baseline" else evidence.method_losses
    doubling = predict_doubling(evidence, losses)
    if teacher.verdict == "no":
        return Answer("no", "Synthetic rows from this teacher would not help: it is too weak.", doubling)
    if doubling is None or doubling.low is None or doubling.high is None or doubling.too_far:
        return Answer(
            "cannot_tell",
            "Whether synthetic rows would help cannot be told: the learning curve is not known.",
            doubling,
        )
    numbers = f"twice the rows would lower the NLL by {_span(doubling)}, if they were as good as yours"
    if doubling.high < MIN_GAP_NATS:
        return Answer("no", f"Synthetic rows would hardly help: {numbers}.", doubling)
    if doubling.low > MIN_GAP_NATS and teacher.verdict == "yes":
        return Answer("yes", f"Synthetic rows are worth trying: {numbers}, and the teacher is strong enough.", doubling)
    return Answer("cannot_tell", f"Whether synthetic rows would help cannot be told: {numbers}.", doubling)


def lagging_domains(evidence: Evidence) -> DomainAnswer:
    """Perplexity ratios to the teacher: of the pilot's trained students, else of the untrained one."""
    by_domain = {d: dict(r) for d, r in (evidence.method_ratios or evidence.baseline_ratios).items()}
    who = f"the pilot's {evidence.method if evidence.method_ratios else evidence.baseline} students"
    if not by_domain and evidence.measurement is not None:
        who = "the untrained student"
        by_domain = {
            d: {0: math.exp(min(m.student_nll - m.teacher_nll, 50.0))} for d, m in evidence.measurement.domains.items()
        }
    if len(by_domain) < 2:
        return DomainAnswer(
            "cannot_tell", "Which domains lag cannot be told: there are no two with a known ratio.", {}, [], {}
        )
    ratios = {d: t_interval([r[s] for s in sorted(r)]) for d, r in by_domain.items()}
    ordered = dict(sorted(ratios.items(), key=lambda item: -item[1].mean))
    spread = max(r.mean for r in ratios.values()) / min(r.mean for r in ratios.values())
    lagging = _above_the_mean(by_domain)
    names = ", ".join(f"{d} {r.mean:.2f}" for d, r in list(ordered.items())[:5])
    numbers = f"perplexity of {who} over the teacher's: {names}{' ...' if len(ordered) > 5 else ''}; largest over smallest {spread:.2f}"
    weights = _softmax({d: r.mean for d, r in ordered.items()})
    if mean(r.mean for r in ratios.values()) > math.exp(NO_EVIDENCE_NATS):
        text = (
            f"Which domains lag cannot be told: students more than {NO_EVIDENCE_NATS} nats/token above their teacher are no "
            f"evidence ({numbers})."
        )
        return DomainAnswer("cannot_tell", text, ordered, [], weights)
    if spread >= WORTH_FOLLOWING:
        text = (
            f"Domains lag unevenly, so a mixture that follows the gap (mixture.type=ddk) is worth trying ({numbers})."
        )
        return DomainAnswer("yes", text, ordered, lagging, weights)
    if spread < NOT_WORTH_FOLLOWING:
        return DomainAnswer(
            "no", f"The domains lag alike: DDK has little to shift ({numbers}).", ordered, lagging, weights
        )
    text = f"Some domains lag more, and whether DDK would help cannot be told from that ({numbers})."
    return DomainAnswer("cannot_tell", text, ordered, lagging, weights)


def _no_choice(evidence: Evidence, prediction: Prediction | None) -> str | None:
    """Why the pilot cannot choose at all, or None."""
    if prediction is None:
        return "a pilot with both methods at two sizes and a common seed is needed"
    if prediction.low is None:
        return f"the pilot has only {seeds_text(1)} that is complete, so nothing says how much is chance"
    if prediction.too_far:
        return (
            f"the full size is {prediction.factor:.0f} times the largest pilot's, and nothing beyond {MAX_FACTOR:.0f} times is "
            "predicted; run larger pilot sizes"
        )
    largest = evidence.sizes[-1]
    teacher = evidence.teacher_nll
    if teacher is not None:
        gap = min(mean(g[largest].values()) for g in (evidence.baseline_losses, evidence.method_losses)) - teacher
        if gap > NO_EVIDENCE_NATS:
            return (
                f"at the largest pilot size the better student is still {number(gap)} nats/token above the teacher, and "
                f"above {NO_EVIDENCE_NATS} a comparison is no evidence; run larger pilot sizes"
            )
    return None


def _crossover_sentence(evidence: Evidence, found: Crossover | None) -> str:
    method = evidence.method
    if found is None:
        return f"Up to how much data {method} pays cannot be told without a pilot of two sizes."
    none = found.fraction_without_root
    doubt = "one seed, so no range" if none is None else f"{none:.0%} of resampled seeds show no crossing"
    if found.size is None:
        low, high = found.searched
        how = {
            "method_ahead": f"{method} stays ahead",
            "baseline_ahead": f"{method} stays behind",
            "reverse": f"{method} gets ahead only later",
            "level": "both are level",
        }[found.status]
        return f"No crossover is expected from {rows_text(low)} to {rows_text(high)}: {how} ({doubt}).".replace(
            "%", " %"
        )
    span = (
        f", {found.interval_kind} {rows_text(found.quantiles[0])} to {rows_text(found.quantiles[2])}"
        if found.quantiles
        else ""
    )
    beyond = "; an extrapolation beyond the pilot's sizes" if found.extrapolated else ""
    text = f"{method} is expected to pay up to about {rows_text(found.size)}{span} ({doubt}{beyond})."
    return text.replace("% ", " % ").replace("  %", " %")


def _cannot_tell(evidence: Evidence) -> list[str]:
    """What no pilot of this kind answers, and what this one lacks."""
    notes = [
        "The advice is about NLL on your held-out rows; how task scores move with it is not predicted.",
        "Both methods train at the recipe's settings; a learning rate tuned for one of them could change the order.",
        "Another teacher was not tried: what a stronger one would bring follows from no number here.",
    ]
    if evidence.unfinished:
        failed = sum(u["status"] == "failed" for u in evidence.unfinished)
        notes.append(
            f"{len(evidence.unfinished)} pilot runs are missing ({failed} failed), so fewer seeds or sizes count."
        )
    if evidence.seeds and len(evidence.seeds) < 3:
        notes.append(f"The pilot has {seeds_text(len(evidence.seeds))}: intervals over so few are very wide or absent.")
    if evidence.sizes and len(evidence.sizes) < 5:
        notes.append(
            f"With {len(evidence.sizes)} sizes no learning curve is fitted; the difference is carried on in the log of the data."
        )
    return notes


def _above_the_mean(by_domain: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Domains whose ratio less the seed's mean over domains is above zero with its whole interval, largest first."""
    seeds = sorted(set.intersection(*(set(r) for r in by_domain.values())))
    if not seeds:
        return []
    centre = {seed: mean(r[seed] for r in by_domain.values()) for seed in seeds}
    excess = {d: t_interval([r[s] - centre[s] for s in seeds]) for d, r in by_domain.items()}
    return sorted((d for d, e in excess.items() if e.sign == 1), key=lambda d: -excess[d].mean)


def _softmax(ratios: Mapping[str, float]) -> dict[str, float]:
    """DDK's Eq. 1 (arXiv 2407.16154)."""
    top = max(ratios.values())
    weights = {d: math.exp(r - top) for d, r in ratios.items()}
    total = math.fsum(weights.values())
    return {d: w / total for d, w in weights.items()}


def _span(prediction: Prediction) -> str:
    """``0.045 nats/token (0.020 to 0.070 over 3 seeds and 3 ways to carry the curves on)``."""
    if prediction.low is None or prediction.high is None:
        return f"{number(prediction.mean)} nats/token (one seed, so no interval)"
    return (
        f"{number(prediction.mean)} nats/token ({number(prediction.low)} to {number(prediction.high)} over "
        f"{seeds_text(prediction.num_seeds)} and {len(prediction.ways)} ways to carry the curves on)"
    )
