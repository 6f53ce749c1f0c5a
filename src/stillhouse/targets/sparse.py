"""What is kept of a teacher's distribution: a few ids per target with their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from stillhouse.errors import DataError

Kind = Literal["top_k", "sampled"]
Tail = Literal["none", "renormalised", "ghost"]

PADDING = -1


@dataclass(frozen=True)
class SparseTargets:
    """Teacher probabilities of k ids at N target tokens, at the temperature of the capture.

    ids int64 [N, k]: distinct in a row; slot 0 is the teacher's most probable id; unused slots
    hold ``PADDING`` and come last. weight float32 [N, k], 0 where the slot is unused.

    ``tail`` says where the mass outside the k ids goes: ``renormalised`` weights are shares of the
    kept mass and sum to 1; ``ghost`` weights are probabilities, and what is missing to 1 belongs to
    all other ids together; ``none`` (``kind`` is then ``sampled``) weights are an unbiased estimate of
    the whole distribution, so nothing is said about ids that are not listed. A sampled row may list
    the most probable id with weight 0, because no draw fell on it.

    teacher_nll, teacher_entropy float32 [N], at temperature 1: kept at capture, or None.
    ``vocab_size`` is V*: all ids lie below it.
    """

    ids: Tensor
    weight: Tensor
    tail: Tail
    kind: Kind
    temperature: float
    vocab_size: int
    teacher_nll: Tensor | None = None
    teacher_entropy: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def valid(self) -> Tensor:
        """bool [N, k]: the slots in use."""
        return self.ids != PADDING

    @property
    def top1(self) -> Tensor:
        """The teacher's most probable id, int64 [N]."""
        return self.ids[:, 0]

    def to(self, device: torch.device | str) -> SparseTargets:
        """Return the targets on ``device``."""
        return replace(
            self,
            ids=self.ids.to(device),
            weight=self.weight.to(device),
            teacher_nll=None if self.teacher_nll is None else self.teacher_nll.to(device),
            teacher_entropy=None if self.teacher_entropy is None else self.teacher_entropy.to(device),
        )

    def check(self) -> None:
        """Raise DataError naming the first row with a repeated id, an id outside the vocabulary or a bad weight."""
        ordered = self.ids.sort(dim=1).values
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PADDING)
        outside = (self.ids >= self.vocab_size) | ((self.ids < 0) & self.valid)
        total = self.weight.sum(1)
        above_one = total > 1 + 1e-4 if self.kind == "top_k" else torch.zeros_like(total, dtype=torch.bool)
        problems = {
            "lists an id twice": repeated.any(1),
            f"lists an id outside 0 to {self.vocab_size - 1}": outside.any(1),
            "lists no id": ~self.valid[:, :1].any(1),
            "has a negative or undefined weight": (~(self.weight >= 0)).any(1),
            "has weights that sum to more than 1": above_one,
        }
        for problem, rows in problems.items():
            if bool(rows.any()):
                raise DataError(f"teacher targets: row {int(rows.nonzero()[0])} {problem}; capture these targets again")

    def restricted(self, vocab_size: int) -> SparseTargets:
        """Drop ids at or above ``vocab_size`` and share their mass among the others (methods.md section 4).

        A ghost's mass is scaled with the rest. For targets from a teacher whose head has rows beyond
        the real vocabulary. Raises DataError when a row would keep no mass.
        """
        kept = self.valid & (self.ids < vocab_size)
        lost = (self.weight * ~kept).sum(1, keepdim=True)
        if bool((lost >= 1 - 1e-6).any()) or not bool(kept.any(1).all()):
            raise DataError(f"teacher targets: a row has all its mass on ids at or above {vocab_size}")
        weight = torch.where(kept, self.weight / (1 - lost), 0.0)
        # Kept slots move to the front, in their order.
        order = (~kept).to(torch.int8).argsort(dim=1, stable=True)
        ids = torch.where(kept, self.ids, PADDING).gather(1, order)
        return replace(self, ids=ids, weight=weight.gather(1, order), vocab_size=vocab_size)
