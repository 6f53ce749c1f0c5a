"""What a run's numbers say, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.report.methods import is_distilled
from stillhouse.report.rundata import RunData
from stillhouse.report.text import clip, count, enumeration, number, share

LEVEL_NATS = 0.01
"""Two runs this close are called level."""
ONE_SEED_NATS = 0.05
"""A lead this small can be another seed's."""
WORSE_NATS = 0.02
MIN_GAP_NATS = 0.02
NAME_LIMIT = 40


@dataclass(frozen=True)
class Headline:
    """The first sentence of a page, and the sentences under it."""

    title: str
    details: tuple[str, ...]


def run_headline(run: RunData) -> Headline:
    """Say how far the run came, and where its teacher is worse than its student."""
    if run.result is None:
        return _unfinished(run)
    headline = run.result["headline"]
    before, after, teacher = headline["student_before"], headline["student_after"], headline["teacher"]
    closed = headline["gap_closed"]
    return Headline(_title(before, after, teacher, closed), (_numbers(before, after, teacher), *teacher_worse(run)))


def _unfinished(run: RunData) -> Headline:
    step = max((event["step"] for event in (*run.steps, *run.evaluations)), default=0)
    if not run.evaluations:
        detail = "There is no evaluation yet."
    else:
        first, last = run.evaluations[0], run.evaluations[-1]
        detail = (
            f"The validation NLL was {number(first['nll'])} nats/token at step {count(first['step'])} "
            f"and {number(last['nll'])} at step {count(last['step'])}."
        )
    title = f"This run is not finished: its last record is of step {count(step)}."
    return Headline(title, (detail, "The same train command resumes it."))


def _title(before: float, after: float, teacher: float | None, closed: float | None) -> str:
    if after > before + WORSE_NATS:
        return "Training made the student worse on the held-out rows."
    if teacher is None:
        return f"Training took the student from {number(before)} to {number(after)} nats per token."
    if closed is None:
        return "The teacher was no better than the untrained student, so there was no gap to close."
    if closed > 1:
        return "The trained student predicts the held-out answers better than its teacher."
    return f"Training closed {share(closed)} of the gap to the teacher."


def _numbers(before: float, after: float, teacher: float | None) -> str:
    beside = f"; the teacher is at {number(teacher)}" if teacher is not None else ""
    return (
        f"On held-out rows the student went from {number(before)} to {number(after)} nats per token{beside} "
        "(average over domains, content tokens; lower is better)."
    )


def teacher_worse(run: RunData) -> tuple[str, ...]:
    """One sentence naming the domains where the teacher's NLL is above the trained student's, or nothing."""
    assert run.result is not None
    teacher, after = run.result["evaluation"]["teacher"], run.result["evaluation"]["student_after"]
    names = [] if teacher is None else worse_domains(teacher, after)
    if not names:
        return ()
    where = enumeration([clip(name, NAME_LIMIT) for name in names])
    if is_distilled(run.recipe):
        there = "there" if len(names) == 1 else "in each of them"
        return (
            f"The teacher is worse than the student in {where}: KD pulls the student towards a worse model {there}.",
        )
    return (
        f"The teacher is worse than the trained student in {where}: distilling from it as it is would not help there.",
    )


def worse_domains(teacher: dict[str, Any], student: dict[str, Any]) -> list[str]:
    """Domains where the teacher's NLL is higher than the student's by more than ``WORSE_NATS``."""
    return [
        name
        for name, domain in student["domains"].items()
        if name in teacher["domains"] and teacher["domains"][name]["nll"] > domain["nll"] + WORSE_NATS
    ]


def domain_gap_closed(before: float, after: float, teacher: float | None) -> float | None:
    """Return the share of one domain's gap that training closed; None where there was no gap."""
    if teacher is None or before - teacher < MIN_GAP_NATS:
        return None
    return (before - after) / (before - teacher)


def comparison_headline(runs: Sequence[RunData], names: Sequence[str]) -> Headline:
    """Say which finished run has the lowest NLL, by how much, and what weakens the comparison."""
    scores = [_result(run)["headline"]["student_after"] for run in runs]
    labels = run_labels(runs, names)
    order = sorted(range(len(runs)), key=scores.__getitem__)
    best, second = order[0], order[1]
    lead = scores[second] - scores[best]
    if lead < LEVEL_NATS:
        title = f"{labels[best]} and {labels[second]} are level here."
    elif len(runs) == 2:
        title = f"{labels[best]} beats {labels[second]} here."
    else:
        title = f"{labels[best]} is the best of {len(runs)} runs here."
    ranking = ", ".join(f"{labels[i]} {number(scores[i], 3)}" for i in order)
    details = [f"NLL of the trained students on held-out rows, in nats per token (lower is better): {ranking}."]
    if LEVEL_NATS <= lead < ONE_SEED_NATS:
        details.append(f"The lead of {number(lead, 3)} is small; other seeds may turn it round.")
    return Headline(title, (*details, *_beside_teacher(runs, labels), *differences(runs)))


def run_labels(runs: Sequence[RunData], names: Sequence[str]) -> list[str]:
    """Name runs by their objective (SFT, KD) where that tells them apart, else by the given names."""
    objectives = [run.objective.upper() for run in runs]
    return objectives if len(set(objectives)) == len(runs) else [clip(name, NAME_LIMIT) for name in names]


def differences(runs: Sequence[RunData]) -> list[str]:
    """Sentences on what besides the method differs between the runs."""
    results = [_result(run) for run in runs]
    values = {
        "held-out rows": [
            {name: domain["content_tokens"] for name, domain in r["evaluation"]["student_after"]["domains"].items()}
            for r in results
        ],
        "students at the start": [round(r["headline"]["student_before"], 3) for r in results],
        "training tokens": [r["training"]["tokens"] for r in results],
    }
    differing = [name for name, found in values.items() if any(value != found[0] for value in found)]
    if not differing:
        return ["All runs saw the same number of training tokens and were scored on the same held-out rows."]
    return [f"Mind that the runs differ in their {enumeration(differing)}, so this is not the method alone."]


def _beside_teacher(runs: Sequence[RunData], labels: Sequence[str]) -> list[str]:
    closed = [_result(run)["headline"]["gap_closed"] for run in runs]
    parts = [f"{label} {share(value)}" for label, value in zip(labels, closed, strict=True) if value is not None]
    return [f"Share of the gap to the teacher that is closed: {', '.join(parts)}."] if parts else []


def _result(run: RunData) -> dict[str, Any]:
    assert run.result is not None, "the caller compares finished runs"
    return run.result
