"""Comparing models with different tokenizers: bits per byte of the same text, never nats per token."""

from __future__ import annotations

from stillhouse.evaluation.nll import NLLReport, macro_average


def bits_per_byte(report: NLLReport) -> float | None:
    """Return the macro-average over domains, None where the bytes of a domain are not known."""
    found = [domain.bits_per_byte for domain in report.domains.values()]
    known = [value for value in found if value is not None]
    return macro_average(known) if len(known) == len(found) else None


def other_tokenizer_warning(teacher: NLLReport, before: NLLReport, after: NLLReport) -> str:
    """Say why there is no gap to the teacher, and what there is in its place."""
    named = {"teacher": teacher, "student before": before, "student after": after}
    numbers = {name: bits_per_byte(report) for name, report in named.items()}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items() if value is not None)
    return (
        "the teacher has another tokenizer, so its NLL per token does not compare with the student's and no share of a "
        f"gap is given; bits per byte (macro over domains) do compare: {shown}"
    )
