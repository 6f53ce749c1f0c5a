"""How many validation tokens may drive the mixture, and which documents they are.

Measuring the student in every interval costs time that does not train it. The tokens per domain are
chosen so that the predicted overhead stays within a share of the training time; the documents that
drive the weights are kept apart from those that score the result.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from stillhouse.data.document import BoolArray, DocumentSet, Int64Array
from stillhouse.errors import DataError, RecipeError
from stillhouse.randomness import numpy_generator

MAX_OVERHEAD = 0.03
MINIMUM_TOKENS = 256
"""Token losses scatter by about 3 nats, so the mean of 256 is known to 0.2: less would steer by noise.

What counts are targets, prompts cost time and say nothing. A budget of fewer tokens cannot hold as many targets and
is refused; a domain that finds fewer targets within its budget is warned of.
"""


@dataclass(frozen=True)
class TokenCosts:
    """Cost per token of a training step and of scoring with either model, all in one unit (seconds, FLOPs)."""

    train: float
    student: float
    teacher: float

    @classmethod
    def from_parameters(cls, student: int, teacher: int, *, distilled: bool) -> TokenCosts:
        """FLOPs by the usual rule: 2 per parameter forward, 6 forward and backward.

        ``distilled``: the training step runs the teacher too.
        """
        return cls(6.0 * student + (2.0 * teacher if distilled else 0.0), 2.0 * student, 2.0 * teacher)


@dataclass(frozen=True)
class ValidationBudget:
    """``overhead`` is the predicted share of the training time; ``measurements`` counts the student's."""

    tokens_per_domain: int
    overhead: float
    measurements: int


def predict_overhead(
    costs: TokenCosts,
    tokens_per_domain: int,
    *,
    num_domains: int,
    interval_steps: int,
    num_steps: int,
    tokens_per_step: int,
) -> ValidationBudget:
    """Overhead of scoring ``tokens_per_domain`` tokens of every domain.

    The student scores them at the start of each interval, the teacher once.
    """
    measurements = math.ceil(num_steps / interval_steps)
    scoring = num_domains * tokens_per_domain * (measurements * costs.student + costs.teacher)
    return ValidationBudget(tokens_per_domain, scoring / (num_steps * tokens_per_step * costs.train), measurements)


def choose_validation_tokens(
    costs: TokenCosts,
    *,
    num_domains: int,
    interval_steps: int,
    num_steps: int,
    tokens_per_step: int,
    available_tokens: int,
    max_overhead: float = MAX_OVERHEAD,
) -> ValidationBudget:
    """The most tokens per domain whose predicted overhead is at most ``max_overhead``.

    ``available_tokens``: of the domain that has most; more cannot be used.

    Raises RecipeError when that leaves fewer than 256 tokens per domain: the interval is too short.
    """

    def predict(tokens: int, steps: int) -> ValidationBudget:
        return predict_overhead(
            costs,
            tokens,
            num_domains=num_domains,
            interval_steps=steps,
            num_steps=num_steps,
            tokens_per_step=tokens_per_step,
        )

    tokens = math.floor(max_overhead / predict(1, interval_steps).overhead)
    while tokens > 0 and predict(tokens, interval_steps).overhead > max_overhead:
        tokens -= 1  # the division above may round up
    if tokens < MINIMUM_TOKENS:
        longer = range(interval_steps, num_steps + 1)
        fits = next((k for k in longer if predict(MINIMUM_TOKENS, k).overhead <= max_overhead), None)
        remedy = f"raise it to at least {fits}" if fits is not None else "train longer"
        raise RecipeError(
            f"mixture.interval_steps={interval_steps}: measuring {num_domains} domains so often leaves {tokens} "
            f"validation tokens per domain within {max_overhead:.0%} of the training time, and fewer than "
            f"{MINIMUM_TOKENS} say nothing; {remedy}, or set mixture.validation_tokens_per_domain yourself"
        )
    return predict(min(tokens, available_tokens), interval_steps)


def count_content_targets(documents: DocumentSet, end_of_turn_ids: Collection[int]) -> Int64Array:
    """The tokens per domain that an NLL is averaged over, int64 [D]: targets that do not end a turn."""
    content = documents.mask & ~np.isin(documents.tokens, sorted(end_of_turn_ids))
    domains = np.repeat(documents.domain_ids, documents.lengths)
    return np.bincount(domains[content], minlength=len(documents.domains))


def warn_of_thin_domains(driving: DocumentSet, targets: Int64Array, *, active: BoolArray, where: str) -> str | None:
    """Name the trained domains whose ratio is read from fewer than 256 content targets; None where all have them.

    ``targets`` int64 [D] and ``active`` bool [D] as above; ``where`` names the mixture.

    Raises DataError for a domain without any.
    """
    thin = [(driving.domains[i], int(targets[i])) for i in np.flatnonzero(active & (targets < MINIMUM_TOKENS))]
    for name, count in thin:
        if not count:
            raise DataError(
                f"data.validation: the rows of domain {name!r} that drive the {where} have no target token, so its gap "
                "cannot be measured; add validation rows with longer answers, or raise "
                "mixture.validation_tokens_per_domain"
            )
    if not thin:
        return None
    counts = ", ".join(f"{name!r} ({count})" for name, count in thin)
    return (
        f"{where}: fewer than {MINIMUM_TOKENS} target tokens measure the gap of {counts}, so noise moves their weights; "
        "add validation rows, or raise mixture.validation_tokens_per_domain (prompts count there), which costs time"
    )


def split_driving_documents(
    validation: DocumentSet, tokens_per_domain: int, *, seed: int, active: BoolArray
) -> tuple[Int64Array, Int64Array]:
    """Split validation documents into those that drive the weights and those that score the result.

    Returns (driving, scoring), sorted int64 indices into ``validation``. Whole source rows are drawn,
    so pieces of one text stay together, as long as a domain has at most ``tokens_per_domain`` tokens: one
    at least, and one at least is left for scoring. ``active`` bool [D]: the domains that are trained on;
    the others only score.

    Raises DataError for an active domain with fewer than two validation rows.
    """
    lengths = validation.lengths
    driving: list[Int64Array] = []
    for domain in np.flatnonzero(active):
        name = validation.domains[domain]
        members = np.flatnonzero(validation.domain_ids == domain)
        rows = np.unique(validation.rows[members])
        if len(rows) < 2:
            raise DataError(
                f"data.validation: domain {name!r} has {len(rows)} usable validation rows, and a mixture that follows "
                "the student needs two (one drives the weights, one scores); add rows or raise data.validation_fraction"
            )
        rows = numpy_generator(seed, f"mixture validation {name}").permutation(rows)
        tokens = np.array([lengths[members[validation.rows[members] == row]].sum() for row in rows])
        count = int(np.searchsorted(np.cumsum(tokens), tokens_per_domain, side="right"))
        count = min(max(count, 1), len(rows) - 1)
        driving.append(members[np.isin(validation.rows[members], rows[:count])])
    chosen = np.sort(np.concatenate(driving))
    return chosen, np.setdiff1d(np.arange(len(validation)), chosen)
