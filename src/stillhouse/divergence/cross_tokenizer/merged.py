"""Divergences between merged distributions over two vocabularies, with their gradients (methods.md section 8).

A merged row r = c * q is the student's distribution q at one position, times the probability c of the
tokens that its group holds besides; s is the teacher's. Rows need not sum to 1. Each method returns its
value [G] and the slope dD/dr [G, V_S]; how that reaches the logits is the objective's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST_PROBABILITY = 1e-8
"""Matched probabilities below it count as it, and get no gradient (as in TRL's GOLD)."""


@dataclass(frozen=True)
class VocabularyMatch:
    """Which ids of two vocabularies write the same bytes; all int64.

    student_ids, teacher_ids [K]: the pairs. student_rest [V_S - K], teacher_rest [V_T - K]: all others,
    ascending.
    """

    student_ids: Tensor
    teacher_ids: Tensor
    student_rest: Tensor
    teacher_rest: Tensor

    @classmethod
    def of(cls, student_ids: Tensor, teacher_ids: Tensor, student_size: int, teacher_size: int) -> VocabularyMatch:
        """Join pairs int64 [K] with what remains of vocabularies of these sizes."""
        assert len(student_ids) == len(teacher_ids)
        return cls(student_ids, teacher_ids, _others(student_ids, student_size), _others(teacher_ids, teacher_size))

    def to(self, device: torch.device | str) -> VocabularyMatch:
        """Return the match on ``device``."""
        return VocabularyMatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @property
    def share_of_teacher(self) -> float:
        """|matched| / V_T, the default weight of GOLD's matched part."""
        return len(self.teacher_ids) / (len(self.teacher_ids) + len(self.teacher_rest))


MergedDivergence = Callable[[Tensor, Tensor, VocabularyMatch], tuple[Tensor, Tensor]]
"""(student r [G, V_S], teacher s [G, V_T], match) -> (value [G], dD/dr [G, V_S])."""


def uld(student: Tensor, teacher: Tensor, match: VocabularyMatch) -> tuple[Tensor, Tensor]:
    """Universal logit distillation (Boizard et al. 2024, arXiv 2402.12030): L1 between sorted probabilities.

    sum_i |sort(r)_i - sort(s)_i|, the shorter vocabulary padded with zeros. It compares the shapes of
    the distributions, not which token is which, so ``match`` is not looked at.
    """
    del match
    return sorted_l1(student, teacher)


def hybrid(*, beta: float, matched_weight: float | None) -> MergedDivergence:
    """GOLD's hybrid (TRL, October 2025): w * JSD on ids that write the same bytes + (1 - w) * sorted L1 on the rest.

    J = beta sum s log(s/m) + (1-beta) sum r log(r/m), m = beta s + (1-beta) r, on the matched entries
    as they are, not normalised, so J may be negative; beta 0 and 1 mean forward and reverse KL exactly,
    as for ``divergence.jsd``. ``matched_weight`` None: w = |matched| / V_T.
    """

    def divergence(student: Tensor, teacher: Tensor, match: VocabularyMatch) -> tuple[Tensor, Tensor]:
        weight = match.share_of_teacher if matched_weight is None else matched_weight
        matched, matched_slope = _sub_jsd(student[:, match.student_ids], teacher[:, match.teacher_ids], beta)
        rest, rest_slope = sorted_l1(student[:, match.student_rest], teacher[:, match.teacher_rest])
        slope = torch.empty_like(student)
        slope[:, match.student_ids] = weight * matched_slope
        slope[:, match.student_rest] = (1 - weight) * rest_slope
        return weight * matched + (1 - weight) * rest, slope

    return divergence


def sorted_l1(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum |sort(r) - sort(s)| [G] and its gradient at r, a sign routed through the sort, [G, A].

    student [G, A], teacher [G, B], nothing negative; the narrower one is padded with zeros.
    """
    values, order = _sort(student)
    others = _sorted_values(teacher)
    # Ascending, so equal ranks stand at the same distance from the end.
    missing = student.shape[1] - teacher.shape[1]
    padded = torch.nn.functional.pad(others, (max(0, missing), 0))
    below = padded[:, : max(0, -missing)].sum(-1)  # the teacher's smallest face zeros
    difference = values - padded[:, max(0, -missing) :]
    slope = torch.empty_like(student).scatter_(1, order, difference.sign())
    return difference.abs().sum(-1) + below, slope


def _sub_jsd(student: Tensor, teacher: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """J and dJ/dr on sub-stochastic rows [G, K]."""
    r, s = student.clamp_min(LEAST_PROBABILITY), teacher.clamp_min(LEAST_PROBABILITY)
    if beta == 0:
        terms, slope = s * (s / r).log(), -s / r
    elif beta == 1:
        terms, slope = r * (r / s).log(), (r / s).log() + 1
    else:
        m = beta * s + (1 - beta) * r
        to_student = (r / m).log()
        terms = beta * s * (s / m).log() + (1 - beta) * r * to_student
        slope = (1 - beta) * to_student
    return terms.sum(-1), torch.where(student >= LEAST_PROBABILITY, slope, 0.0)


def _others(ids: Tensor, size: int) -> Tensor:
    kept = torch.ones(size, dtype=torch.bool)
    kept[ids] = False
    return kept.nonzero().squeeze(1)


def _sort(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of each row ascending, and their places int64.

    NumPy sorts rows of float32 on CPU fifteen times as fast as torch (49,152 entries: 0.23 ms against 3.5),
    most of all integers: the bits of a probability ascend with it, and the place fits below them.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        ordered = values.sort(dim=1)
        return ordered.values, ordered.indices
    bits = values.contiguous().numpy().view(np.uint32).astype(np.uint64) << np.uint64(32)
    bits |= np.arange(values.shape[1], dtype=np.uint64)
    bits.sort(axis=1)
    sorted_values = (bits >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return torch.from_numpy(sorted_values), torch.from_numpy((bits & np.uint64(0xFFFFFFFF)).astype(np.int64))


def _sorted_values(values: Tensor) -> Tensor:
    """Return the values of each row ascending."""
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.contiguous().numpy(), axis=1))
