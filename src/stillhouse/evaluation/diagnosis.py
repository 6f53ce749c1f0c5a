"""Plain-language warnings from a run's numbers: why distillation may not have helped, and what not to believe."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from stillhouse.evaluation.nll import NLLReport

MIN_GAP_NATS = 0.02
"""A smaller difference between two models is noise, and a share of such a gap means nothing."""
NO_EVIDENCE_NATS = 1.5
"""A student this far above its teacher is still gibberish: nothing it shows carries over to a good one."""
MIN_CONTENT_TOKENS = 200
SMALL_RATIO, LARGE_RATIO = 0.05, 20.0


def gap_closed(before: float, after: float, teacher: float | None) -> float | None:
    """Return the share of the NLL gap to the teacher that training closed: (before - after) / (before - teacher).

    1 means as good as the teacher, above 1 better, below 0 worse than at the start. None without a
    teacher, and where it is less than ``MIN_GAP_NATS`` better than the student was at the start.
    """
    if teacher is None or before - teacher < MIN_GAP_NATS:
        return None
    return (before - after) / (before - teacher)


def diagnose(
    *,
    teacher: NLLReport | None,
    before: NLLReport,
    after: NLLReport,
    gradient_ratios: Sequence[float] = (),
    distilled: bool = True,
) -> list[str]:
    """Return every warning for a run, the gravest kind first; an empty list means nothing stood out.

    ``distilled``: the student learned from the teacher, so a worse one matters.
    ``gradient_ratios`` are the steps' weighted gradient RMS of KD over that of CE at the logits.
    """
    warnings = (
        [*(worse_teacher(teacher, before, after) if distilled else []), *no_evidence(teacher, after)]
        if teacher is not None
        else []
    )
    return [*warnings, *got_worse(before, after), *small_test_sets(after), *unbalanced_gradients(gradient_ratios)]


def worse_teacher(teacher: NLLReport, before: NLLReport, after: NLLReport) -> list[str]:
    """Domains where the student, before or after training, predicts the gold answers better than the teacher."""
    warnings = []
    for name, domain in teacher.domains.items():
        students = [
            (report.domains[name].nll, when)
            for report, when in ((before, "before"), (after, "after"))
            if name in report.domains
        ]
        nll, when = min(students, default=(domain.nll, ""))
        if domain.nll > nll + MIN_GAP_NATS:
            warnings.append(
                f"{name}: the teacher is worse than the student {when} training ({domain.nll:.2f} against {nll:.2f} "
                "nats/token), so its targets pull the student away from the gold answers. Fine-tune the teacher on "
                "the training rows first, or lower the weight of the divergence."
            )
    return warnings


def no_evidence(teacher: NLLReport, after: NLLReport) -> list[str]:
    """Domains where the trained student is still far above the teacher."""
    return [
        f"{name}: the trained student is {domain.nll - teacher.domains[name].nll:.2f} nats/token above the teacher, "
        f"more than {NO_EVIDENCE_NATS}; at this distance a comparison of methods is no evidence. Train longer, or "
        "start from a larger student."
        for name, domain in after.domains.items()
        if name in teacher.domains and domain.nll - teacher.domains[name].nll > NO_EVIDENCE_NATS
    ]


def got_worse(before: NLLReport, after: NLLReport) -> list[str]:
    """Domains where training raised the student's NLL by more than noise."""
    return [
        f"{name}: training made the student worse ({before.domains[name].nll:.2f} to {domain.nll:.2f} nats/token); "
        "look for too high a learning rate, or for a domain that the training rows lack."
        for name, domain in after.domains.items()
        if name in before.domains and domain.nll > before.domains[name].nll + MIN_GAP_NATS
    ]


def small_test_sets(report: NLLReport) -> list[str]:
    """Domains with too few held-out tokens for their NLL to mean much."""
    return [
        f"{name}: only {domain.content_tokens} held-out content tokens (fewer than {MIN_CONTENT_TOKENS}); its numbers "
        "are mostly chance, and it weighs as much as any other domain in the headline. Hold out more rows."
        for name, domain in report.domains.items()
        if domain.content_tokens < MIN_CONTENT_TOKENS
    ]


def unbalanced_gradients(ratios: Sequence[float]) -> list[str]:
    """A median ratio so far from one that one of the two losses hardly counts."""
    if not ratios:
        return []
    median = statistics.median(ratios)
    if median < SMALL_RATIO:
        return [
            f"the divergence's gradient is {median:.2g} times that of cross-entropy (median over steps), so the run "
            "was nearly plain fine-tuning; raise mixing.kd_weight (or gamma)."
        ]
    if median > LARGE_RATIO:
        return [
            f"the divergence's gradient is {median:.2g} times that of cross-entropy (median over steps), so the gold "
            "answers hardly counted; lower mixing.kd_weight (or gamma) unless the teacher alone is to be followed."
        ]
    return []
