"""What became of one attempt at a new row, and which of the good ones are kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

InputReason = Literal[
    "unfinished_input",
    "empty_input",
    "special_token",
    "input_format",
    "input_length",
    "language",
    "duplicate",
    "near_duplicate",
    "contamination",
]
PromptReason = Literal["prompt_too_long"]
AnswerReason = Literal[
    "unfinished_answer", "empty_answer", "answer_format", "verifier", "no_agreement", "answer_length"
]
FinalReason = Literal["nll", "surplus"]
Reason = PromptReason | InputReason | AnswerReason | FinalReason

REASONS: dict[str, str] = {
    "prompt_too_long": "the writer's prompt with one example, or the labeller's with none, leaves no room for a reply",
    "unfinished_input": "the input was cut at inputs.max_new_tokens",
    "empty_input": "the input is empty",
    "special_token": "the input holds a special token of a model's tokenizer",
    "input_format": "the input does not have the form of the seeds, or input_format",
    "input_length": "the input is much shorter or longer than the seeds",
    "language": "the input is in another language",
    "duplicate": "the input is a seed or an earlier input",
    "near_duplicate": "the input is nearly a seed or an earlier input",
    "contamination": "the input gives an evaluation row away",
    "unfinished_answer": "the answer was cut at labels.max_new_tokens",
    "empty_answer": "the answer is empty",
    "answer_format": "the answer does not have the format",
    "verifier": "the verifier refuses the answer, or every sample's",
    "no_agreement": "the samples disagree",
    "answer_length": "the answer is much shorter or longer than the seeds'",
    "nll": "the answer is at an end of the labeller's NLL",
    "surplus": "enough rows without it",
}
assert set(REASONS) == {
    name for reasons in (PromptReason, InputReason, AnswerReason, FinalReason) for name in get_args(reasons)
}


@dataclass(frozen=True)
class Rejection:
    """Why a candidate is not kept: a reason that is counted, and a detail for people."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens read and written; what a server does not tell counts as nothing."""

    prompt_tokens: int = 0
    tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.tokens + other.tokens)


@dataclass(frozen=True)
class Candidate:
    """One attempt, with everything that its provenance needs.

    ``seeds`` are the ids of the human examples of its prompt, the first of which lends its system
    turn, and ``synthetic`` the numbers of the generated ones. ``agreement`` is the share of samples
    that gave ``answer``; ``nll`` the labeller's, in nats per token.
    """

    number: int
    domain: str
    seeds: tuple[str, ...]
    synthetic: tuple[int, ...]
    text: str
    system: str | None = None
    answer: str | None = None
    agreement: float | None = None
    nll: float | None = None
    rejection: Rejection | None = None
    input_usage: Usage = Usage()
    label_usage: Usage = Usage()

    @property
    def passed(self) -> bool:
        return self.rejection is None

    @property
    def input_passed(self) -> bool:
        """Whether the input was good enough to be labelled, and so stands in the pool of known inputs."""
        return self.rejection is None or (bool(self.text) and self.rejection.reason not in get_args(InputReason))


def keep(passed: Sequence[Candidate], target: int, nll_tail: float) -> list[Candidate]:
    """Return all ``passed`` candidates, those not kept with their reason.

    Of n candidates with an NLL the floor(nll_tail * n) lowest and as many highest go; of the rest
    the first ``target`` stay.
    """
    scored = sorted((c for c in passed if c.nll is not None), key=lambda c: (c.nll, c.number))
    tail = math.floor(nll_tail * len(scored))
    ends = {c.number: f"NLL {c.nll:.3f}" for c in (*scored[:tail], *scored[len(scored) - tail :])}
    outcome = []
    room = target
    for candidate in passed:
        if candidate.number in ends:
            outcome.append(replace(candidate, rejection=Rejection("nll", ends[candidate.number])))
        elif room:
            room -= 1
            outcome.append(candidate)
        else:
            outcome.append(replace(candidate, rejection=Rejection("surplus")))
    return outcome


def count_reasons(candidates: Iterable[Candidate]) -> dict[str, int]:
    """Return the number of candidates for each reason that occurs, in the order of REASONS."""
    counts: Counter[str] = Counter(c.rejection.reason for c in candidates if c.rejection is not None)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def candidates_needed(rows: int, acceptance: float) -> int | None:
    """Return how many candidates ``rows`` rows will take at this share of kept ones; None where none is kept."""
    return math.ceil(round(rows / acceptance, 6)) if acceptance > 0 else None
