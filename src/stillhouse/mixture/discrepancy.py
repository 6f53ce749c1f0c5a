"""How far the student lags behind the teacher in each domain (DDK, arXiv 2407.16154).

rho_i = exp(NLL_student_i - NLL_teacher_i), the ratio of the validation perplexities: a number
without unit, 1 where the student has caught up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stillhouse.data.document import Int64Array
from stillhouse.errors import DataError, TrainingError
from stillhouse.mixture.weights import FloatArray

_LARGEST_GAP = 50.0
"""Nats per token. exp(50) is far beyond any ratio that means something and far from overflow."""


def discrepancy_ratio(nll_student: FloatArray, nll_teacher: FloatArray) -> FloatArray:
    """exp(nll_student - nll_teacher), [D] from NLL in nats per token (per byte where tokenizers differ).

    The gap is limited to 50 nats, so that the ratio stays finite.
    """
    return np.exp(np.clip(nll_student - nll_teacher, -_LARGEST_GAP, _LARGEST_GAP))


class DiscrepancyRatios:
    """The newest ratio of each domain; ``measured`` is float64 [D], NaN before its first measurement."""

    def __init__(self, domains: Sequence[str]) -> None:
        self._domains = tuple(domains)
        self.measured: FloatArray = np.full(len(domains), np.nan)

    def observe(self, nll_student: FloatArray, nll_teacher: FloatArray, counts: Int64Array) -> FloatArray:
        """Take one measurement and return a ratio for every domain, float64 [D].

        ``counts`` int64 [D]: the validation tokens (over all ranks) behind both NLLs. A domain without
        any keeps its last ratio; before its first one it takes the mean of those that are known.

        Raises TrainingError naming the domain when an NLL is not finite, DataError when no domain has
        ever had a validation token.
        """
        seen = np.asarray(counts > 0)
        for who, values in (("student", nll_student), ("teacher", nll_teacher)):
            for i in np.flatnonzero(seen & ~np.isfinite(values)):
                raise TrainingError(
                    f"the {who}'s validation NLL of domain {self._domains[i]!r} is {values[i]}, so the mixture cannot "
                    "follow it; lower optimisation.learning_rate, or look for extreme rows in its validation data"
                )
        self.measured[seen] = discrepancy_ratio(nll_student[seen], nll_teacher[seen])
        known = np.isfinite(self.measured)
        if not known.any():
            raise DataError(
                f"data.validation: no domain ({', '.join(self._domains)}) has a validation token, so student and "
                "teacher cannot be compared; add validation rows or raise data.validation_fraction"
            )
        return np.where(known, self.measured, self.measured[known].mean())


class DiscrepancyStop:
    """Stop once max_i rho_i <= 1 + epsilon in two measurements in a row."""

    INTERVALS = 2

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon
        self.streak = 0

    def observe(self, ratios: FloatArray) -> None:
        """``ratios``: those of the active domains; one that is not known (NaN) has not caught up."""
        self.streak = self.streak + 1 if float(ratios.max()) <= 1.0 + self._epsilon else 0

    @property
    def reached(self) -> bool:
        return self.streak >= self.INTERVALS
