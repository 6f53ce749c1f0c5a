"""Is a divergence finite for this pair of models? Looked at once, off the hot path."""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.divergence.base import Divergence
from stillhouse.errors import ModelError


def check_support(divergence: Divergence, teacher_logits: Tensor, student_logits: Tensor) -> None:
    """Raise ModelError where one model has mass on an id that the other masks to -inf.

    Both logits are [N, V]. Only the direction that makes ``divergence`` infinite is refused; ids
    masked in both are fine.
    """
    teacher_masked, student_masked = torch.isneginf(teacher_logits), torch.isneginf(student_logits)
    if divergence.student_must_cover:
        _refuse(divergence, student_masked & ~teacher_masked, "student", "teacher")
    if divergence.teacher_must_cover:
        _refuse(divergence, teacher_masked & ~student_masked, "teacher", "student")


def _refuse(divergence: Divergence, bad: Tensor, masked_by: str, used_by: str) -> None:
    """Raise for the first True in ``bad`` [N, V]."""
    found = bad.nonzero()
    if len(found):
        row, token = found[0].tolist()
        raise ModelError(
            f"{divergence.name} is infinite: the {masked_by} masks token id {token} to -inf where the {used_by} "
            f"gives it mass (position {row}; {len(found)} such entries). Mask that id in both models, or use a "
            "divergence that stays finite (jsd with 0 < beta < 1, skewed_kl, skewed_reverse_kl, tvd)."
        )
