"""How a student's ids relate to its teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stillhouse.models.tokenizers import shared_vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def teacher_ids(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> Tensor | None:
    """Return the teacher's id of every student id, int64 [V*], or None where they are equal.

    A student whose vocabulary was trimmed has only tokens of its teacher, under other ids: the
    teacher then reads its own ids of the same segmentation. Raises ModelError naming the first
    difference when the student has a token that the teacher does not know.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if len(ours) < len(theirs) and ours.keys() <= theirs.keys():
        ordered = sorted(ours, key=ours.__getitem__)
        if [ours[token] for token in ordered] == list(range(len(ordered))):
            return torch.tensor([theirs[token] for token in ordered])
    shared_vocabulary_size(student, teacher)
    return None
