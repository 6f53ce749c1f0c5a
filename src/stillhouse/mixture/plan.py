"""Which documents each optimizer step trains on: a function of the seed and the step number."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache

import numpy as np

from stillhouse.data.document import Int64Array
from stillhouse.errors import DataError
from stillhouse.randomness import numpy_generator
from stillhouse.recipe import Budget


def epoch_order(num_documents: int, seed: int, epoch: int) -> Int64Array:
    """Return the order of the documents in one epoch, int64 [D]."""
    return numpy_generator(seed, "epoch order", epoch).permutation(num_documents)


class Plan:
    """An endless sequence of optimizer steps over shuffled epochs.

    The epochs' orders are laid end to end; each step takes the next documents until they reach
    ``batch_tokens``, so a step may span two epochs and every document is met once an epoch. The
    step number is the whole state: a resumed run asks for the same steps. Where the steps begin is
    worked out once, in order, and remembered (a few bytes a step).
    """

    def __init__(self, lengths: Int64Array, *, batch_tokens: int, seed: int) -> None:
        """``lengths`` are the documents' tokens, int64 [D].

        Raises:
            DataError: there are no documents.
        """
        if not len(lengths):
            raise DataError("there are no documents to plan steps for; give training data")
        self._lengths = np.asarray(lengths, np.int64)
        self._batch_tokens = batch_tokens
        self._epoch_tokens = int(self._lengths.sum())
        self._starts = [0]  # position of each step's first document in the endless sequence
        self._tokens = [0]  # tokens before each step

        @lru_cache(maxsize=4)
        def laid_out(epoch: int) -> tuple[Int64Array, Int64Array]:
            order = epoch_order(len(self._lengths), seed, epoch)
            return order, np.cumsum(self._lengths[order])

        self._laid_out = laid_out

    def documents(self, step: int) -> Int64Array:
        """Return the indices of the documents of one step (counted from 0), int64 [K], in order."""
        self._extend_to(step + 1)
        num_documents = len(self._lengths)
        first, stop = self._starts[step], self._starts[step + 1]
        parts = []
        while first < stop:
            epoch, offset = divmod(first, num_documents)
            count = min(stop - first, num_documents - offset)
            parts.append(self._laid_out(epoch)[0][offset : offset + count])
            first += count
        return np.concatenate(parts)

    def tokens_before(self, step: int) -> int:
        """Return how many document tokens the steps before this one hold."""
        self._extend_to(step)
        return self._tokens[step]

    def epochs_before(self, step: int) -> float:
        """Return how many epochs the steps before this one make, by documents."""
        self._extend_to(step)
        return self._starts[step] / len(self._lengths)

    def num_steps_for(self, budget: Budget) -> int:
        """Return the steps after which the first limit of the budget is reached, at least 1."""
        limits = [] if budget.steps is None else [budget.steps]
        if budget.epochs is not None:
            # Rounded first: 0.1 * 30 is 3.0000000000000004, which is no fourth document.
            wanted = math.ceil(round(budget.epochs * len(self._lengths), 6))
            limits.append(self._steps_until(self._starts, wanted))
        if budget.tokens is not None:
            limits.append(self._steps_until(self._tokens, budget.tokens))
        return max(1, min(limits))

    def _steps_until(self, reached: list[int], wanted: int) -> int:
        while reached[-1] < wanted:
            self._extend_to(len(self._starts))
        return bisect_left(reached, wanted)

    def _extend_to(self, step: int) -> None:
        while len(self._starts) <= step:
            goal = self._tokens[-1] + self._batch_tokens
            epoch, within = divmod(goal - 1, self._epoch_tokens)
            ends = self._laid_out(epoch)[1]
            last = int(np.searchsorted(ends, within, side="right"))  # the first document to end beyond goal - 1
            self._starts.append(epoch * len(self._lengths) + last + 1)
            self._tokens.append(epoch * self._epoch_tokens + int(ends[last]))
