"""Plans per interval: every K steps, the documents of the next K steps are drawn by the current weights.

This is DDK's Algorithm 1 taken literally. An interval's plan depends on the seed, the interval, the
weights and where each domain stands, never on the number of processes: there is one global order, and
a run killed inside an interval draws the identical plan again from a small JSON state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillhouse.data.document import DocumentSet, Int64Array
from stillhouse.errors import RecipeError, TrainingError
from stillhouse.mixture.weights import FloatArray, check_weights, floats_from_json, floats_to_json, largest_remainder
from stillhouse.randomness import numpy_generator


@dataclass
class _Position:
    """Where each of the D domains stands.

    ``cursors``: documents taken from the current cycle; ``cycles``: how often the domain was started
    again; ``balances``: tokens still owed (below zero: drawn beyond the quotas so far).
    """

    cursors: list[int]
    cycles: list[int]
    balances: list[int]

    def copy(self) -> _Position:
        return _Position(list(self.cursors), list(self.cycles), list(self.balances))


@dataclass(frozen=True)
class DomainDraw:
    """What one interval draws from one domain; tokens are those of documents, prompts included."""

    weight: float
    quota_tokens: int
    drawn_tokens: int
    documents: int
    balance_tokens: int
    passes: float
    """Passes over the domain since the run began: whole cycles and the part of the current one."""


class IntervalPlan:
    """Implements the training loop's StepPlan for the current interval; ``advance`` moves to the next.

    Raises RecipeError when ``interval_steps`` exceeds ``num_steps``.
    """

    def __init__(
        self, documents: DocumentSet, *, seed: int, interval_steps: int, num_steps: int, tokens_per_step: int
    ) -> None:
        check_interval(interval_steps, num_steps, where="mixture.interval_steps")
        assert interval_steps >= 1
        assert tokens_per_step >= 1
        self.domains = documents.domains
        self.interval_steps, self._num_steps, self._tokens_per_step = interval_steps, num_steps, tokens_per_step
        self._seed = seed
        self._lengths = documents.lengths
        assert len(self._lengths) == 0 or self._lengths.min() > 0
        self._members = [np.flatnonzero(documents.domain_ids == i) for i in range(len(self.domains))]
        self.domain_tokens: Int64Array = np.array([self._lengths[m].sum() for m in self._members], dtype=np.int64)
        self.interval = -1
        self.draws: tuple[DomainDraw, ...] = ()
        self._weights: FloatArray = np.zeros(len(self.domains))
        self._orders: dict[int, tuple[int, Int64Array]] = {}
        zeros = [0] * len(self.domains)
        self._start = _Position(list(zeros), list(zeros), list(zeros))
        self._end = self._start.copy()
        self._steps: list[Int64Array] = []

    def advance(self, weights: FloatArray) -> None:
        """Draw the next interval by ``weights`` float64 [D].

        Raises RecipeError when they are negative, do not sum to 1, or ask for an empty domain.
        """
        check_weights(weights, self.domains, self.domain_tokens, where="mixture.weights")
        assert (self.interval + 1) * self.interval_steps < self._num_steps, "the run is over"
        self.interval += 1
        self._start, self._weights = self._end, weights
        self._draw()

    def documents(self, step: int) -> Sequence[int]:
        """Document indices of 0-based ``step``, which must lie in the current interval."""
        within = step - self.interval * self.interval_steps
        assert 0 <= within < len(self._steps), f"step {step} is not in interval {self.interval}"
        result: list[int] = self._steps[within].tolist()
        return result

    def state_dict(self) -> dict[str, Any]:
        """JSON from which the current interval and all later ones are drawn again, exactly."""
        return {
            **self._identity(),
            "interval": self.interval,
            "weights": floats_to_json(self._weights),
            "cursors": list(self._start.cursors),
            "cycles": list(self._start.cycles),
            "balances": list(self._start.balances),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state``; TrainingError when it was made with other data or another recipe."""
        for key, value in self._identity().items():
            if state[key] != value:
                raise TrainingError(
                    f"mixture: the checkpoint was made with {key}={state[key]}, and now it is {value}; "
                    "restore the data and the recipe, or use another output.dir"
                )
        self.interval = state["interval"]
        self._weights = floats_from_json(state["weights"])
        self._start = _Position(list(state["cursors"]), list(state["cycles"]), list(state["balances"]))
        self._end = self._start.copy()
        if self.interval >= 0:
            self._draw()

    def _identity(self) -> dict[str, Any]:
        """What a plan depends on besides its state."""
        return {
            "domains": list(self.domains),
            "documents": [len(m) for m in self._members],
            "domain_tokens": self.domain_tokens.tolist(),
            "interval_steps": self.interval_steps,
            "tokens_per_step": self._tokens_per_step,
        }

    def _draw(self) -> None:
        """Fill ``_steps``, ``_end`` and ``draws`` from ``_start``, ``_weights`` and the interval's number."""
        steps = min(self.interval_steps, self._num_steps - self.interval * self.interval_steps)
        position = self._start.copy()
        quotas = largest_remainder(self._weights, steps * self._tokens_per_step)
        drawn: list[list[Int64Array]] = [[] for _ in self.domains]
        for domain, quota in enumerate(quotas.tolist()):
            position.balances[domain] += quota
            drawn[domain] = self._take(domain, position.balances[domain], position)
        while sum(len(part) for parts in drawn for part in parts) < steps:
            # Documents longer than a step, or an earlier overshoot: a step needs a document all the same.
            allowed = [i for i in range(len(self.domains)) if self._weights[i] > 0]
            domain = max(allowed, key=lambda i: position.balances[i])
            drawn[domain] += self._take(domain, 1, position)
        order = np.concatenate([part for parts in drawn for part in parts])
        order = numpy_generator(self._seed, "mixture order", self.interval).permutation(order)
        self._steps = cut_into_steps(order, self._lengths[order], steps)
        self._end = position
        self.draws = tuple(self._describe(i, int(quotas[i]), drawn[i], position) for i in range(len(self.domains)))

    def _take(self, domain: int, tokens: int, position: _Position) -> list[Int64Array]:
        """Draw whole documents until at least ``tokens`` are there; moves ``position``."""
        size = len(self._members[domain])
        parts: list[Int64Array] = []
        while tokens > 0:
            if position.cursors[domain] == size:
                position.cycles[domain] += 1
                position.cursors[domain] = 0
            rest = self._order(domain, position.cycles[domain])[position.cursors[domain] :]
            ends = np.cumsum(self._lengths[rest])
            count = min(len(rest), int(np.searchsorted(ends, tokens)) + 1)
            parts.append(rest[:count])
            position.cursors[domain] += count
            position.balances[domain] -= int(ends[count - 1])
            tokens -= int(ends[count - 1])
        return parts

    def _order(self, domain: int, cycle: int) -> Int64Array:
        """The documents of ``domain`` in the order of one cycle; the newest order is kept."""
        kept = self._orders.get(domain)
        if kept is None or kept[0] != cycle:
            generator = numpy_generator(self._seed, f"mixture domain {self.domains[domain]}", cycle)
            kept = (cycle, generator.permutation(self._members[domain]))
            self._orders[domain] = kept
        return kept[1]

    def _describe(self, domain: int, quota: int, parts: list[Int64Array], position: _Position) -> DomainDraw:
        size = len(self._members[domain])
        return DomainDraw(
            weight=float(self._weights[domain]),
            quota_tokens=quota,
            drawn_tokens=sum(int(self._lengths[part].sum()) for part in parts),
            documents=sum(len(part) for part in parts),
            balance_tokens=position.balances[domain],
            passes=position.cycles[domain] + position.cursors[domain] / size if size else 0.0,
        )


def check_interval(interval_steps: int, num_steps: int, *, where: str) -> None:
    """Raise RecipeError, naming the field ``where``, for an interval longer than the stage's steps."""
    if interval_steps > num_steps:
        raise RecipeError(
            f"{where}={interval_steps}: the run has only {num_steps} steps, so the mixture would "
            f"never be renewed; use at most {max(1, num_steps // 2)} or train longer"
        )


def cut_into_steps(order: Int64Array, lengths: Int64Array, steps: int) -> list[Int64Array]:
    """Cut ``order`` int64 [M] (M >= steps) into ``steps`` consecutive, non-empty parts of like token counts.

    ``lengths`` int64 [M]: tokens of each. A document belongs to the part that holds its middle, so a
    part is at most one document's length away from the mean, unless it would be empty.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    number = np.arange(1, steps, dtype=np.int64)
    # Twice the middle, times steps, against twice the cut, times steps: whole numbers, no rounding.
    cuts = np.searchsorted((2 * ends - lengths) * steps, 2 * number * total)
    cuts = np.maximum.accumulate(np.maximum(cuts, 1) - number) + number
    cuts = np.minimum(cuts, len(order) - steps + number)
    return np.split(order, cuts)
