"""How much of the way from plain fine-tuning to the teacher distillation went."""

from __future__ import annotations

POINT = 0.01
"""One point of a score between 0 and 1."""


def gap_recovered(distilled: float, fine_tuned: float, teacher: float) -> float | None:
    """Return (KD - SFT) / (teacher - SFT) for scores between 0 and 1 where more is better.

    1 means as good as the teacher, 0 no better than SFT. None where teacher and SFT are less than
    a point apart: a share of nothing.
    """
    gap = teacher - fine_tuned
    # A gap of exactly one point counts, whatever its last binary digit.
    return None if abs(gap) < POINT - 1e-12 else (distilled - fine_tuned) / gap
