"""Multiple choice by likelihood: which choice would the model rather give as its answer?

A choice is put in the place of the answer, by the same template that training uses, and scored
in two ways. *Sum*: the log-probability of the whole answer, the end of turn included, so that
``1`` is not preferred to ``10`` for being its beginning. *Per byte*: the log-probability of the
content alone over its UTF-8 bytes, which does not favour short choices.

What is scored has the form of the gold answer: the letters A, B, ... where the question lists its
choices by letter and ``answer`` is one, else the texts of the choices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.chat import Rejection
from stillhouse.data.document import BoolArray, Document, DocumentSet, document_uid
from stillhouse.data.encoding import RowEncoder
from stillhouse.data.rows import Message, Row
from stillhouse.errors import DataError
from stillhouse.evaluation.metrics.calibration import bin_sums, calibration_score
from stillhouse.evaluation.scores import ChoiceScore, Part, Score
from stillhouse.evaluation.sums import GroupSums, rank_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Question:
    """A row with the answers that compete, and which of them is right."""

    row: Row
    candidates: tuple[str, ...]
    correct: int


@dataclass(frozen=True)
class ChoiceSet:
    """Questions as documents: one for each candidate, in order; the last turn alone is a target.

    ``skipped`` questions are not among them: a candidate did not fit the sequence length, or the
    template refused it.
    """

    questions: tuple[Question, ...]
    documents: DocumentSet
    end_of_turn_ids: frozenset[int]
    skipped: int


@dataclass(frozen=True)
class ChoiceOutcome:
    """What a model makes of one question."""

    question: Question
    scores: tuple[ChoiceScore, ...]

    @property
    def parts(self) -> dict[str, Part]:
        """Whether the likeliest candidate is right: by sum and per byte; the first of equals is taken."""
        by_sum = _argmax([score.log_prob for score in self.scores])
        by_byte = _argmax([score.log_prob_per_byte for score in self.scores])
        return {
            "multiple_choice": Part(float(by_sum == self.question.correct)),
            "multiple_choice_norm": Part(float(by_byte == self.question.correct)),
        }


def question_of(row: Row) -> Question:
    """Return the question of a row that has ``choices`` and ``answer``.

    Raises DataError where the answer is neither one of the choices nor the letter of one, or where
    two choices are the same.
    """
    choices, answer = row.checks.choices, row.answer
    letters = tuple(ascii_uppercase[: len(choices)])
    by_letter = answer in letters and (answer not in choices or _lists_by_letter(row, letters))
    candidates = letters if by_letter else choices
    if answer not in candidates or len(set(candidates)) < len(candidates):
        raise DataError(
            f"{row.where}: the answer {answer!r} must be one of the choices, or the letter of one, and no two choices"
            f" the same ({', '.join(map(repr, choices))}); mend the row"
        )
    return Question(row, candidates, candidates.index(answer))


def build_choices(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    *,
    template: str | None,
    max_seq_len: int,
    end_of_turn_ids: frozenset[int],
    tokenizer_hash: str,
) -> ChoiceSet:
    """Encode every candidate of every row as training would encode it as the answer.

    ``template`` is Jinja text, or None for the tokenizer's own. Raises DataError as
    :func:`question_of` does, and where conversations meet a tokenizer without a template.
    """
    questions = [question_of(row) for row in rows]
    answered = [_answered(question.row, candidate) for question in questions for candidate in question.candidates]
    encoder = RowEncoder(tokenizer, max_seq_len=max_seq_len, template=template)
    outcomes = iter(list(encoder.encode(answered)))
    kept: list[Question] = []
    documents: list[Document] = []
    for question in questions:
        own = [next(outcomes) for _ in question.candidates]
        if any(isinstance(o, Rejection) or o.truncated for o in own):
            continue
        for outcome in own:
            assert not isinstance(outcome, Rejection)
            ids, mask = outcome.pieces[0]
            mask = last_turn(mask)
            documents.append(Document(ids, mask, 0, document_uid(ids, mask, tokenizer_hash)))
        kept.append(question)
    numbers = [number for number, question in enumerate(kept) for _ in question.candidates]
    built = DocumentSet.build(documents, numbers, ("choices",), tokenizer_hash)
    return ChoiceSet(tuple(kept), built, end_of_turn_ids, len(questions) - len(kept))


def last_turn(mask: BoolArray) -> BoolArray:
    """Return the mask with its last run of targets only, bool [T]; there must be one."""
    last = len(mask) - 1 - int(mask[::-1].argmax())
    before = np.flatnonzero(~mask[: last + 1])
    kept = mask.copy()
    kept[: before[-1] + 1 if len(before) else 0] = False
    return kept


@torch.no_grad()
def score_choices(
    score: Callable[[Batch], Tensor],
    choices: ChoiceSet,
    *,
    micro_batch_tokens: int,
    device: torch.device | str,
    process_group: dist.ProcessGroup | None = None,
) -> list[ChoiceOutcome]:
    """Return the outcome of each question, shared out over the ranks.

    ``score`` maps a batch on the device to the NLL of its N targets, float32 [N].
    """
    ends = torch.tensor(sorted(choices.end_of_turn_ids), dtype=torch.long)
    sums = GroupSums(len(choices.documents), 2)  # NLL of the content, NLL of the end of turn
    for batch, counts in rank_batches(
        choices.documents, micro_batch_tokens=micro_batch_tokens, process_group=process_group
    ):
        nll = score(batch.to(device)).cpu()
        if counts:
            is_end = torch.isin(batch.labels, ends)
            sums.add(batch.document_ids, torch.stack([nll * ~is_end, nll * is_end], dim=1))
    sums.reduce(device, process_group)
    values = iter(sums.values.tolist())
    return [
        ChoiceOutcome(question, tuple(_choice_score(text, *next(values)) for text in question.candidates))
        for question in choices.questions
    ]


def choice_calibration(outcomes: Sequence[ChoiceOutcome]) -> Score:
    """Return the ECE of the softmax over the candidates' log-probabilities; there must be an outcome."""
    confidence, correct = [], []
    for outcome in outcomes:
        probs = torch.tensor([score.log_prob for score in outcome.scores], dtype=torch.float64).softmax(0)
        confidence.append(float(probs.max()))
        correct.append(outcome.parts["multiple_choice"].value)
    numbers = torch.arange(len(outcomes))
    return calibration_score(
        bin_sums(numbers, torch.tensor(confidence).double(), torch.tensor(correct).double(), len(outcomes))
    )


def _choice_score(text: str, content_nll: float, end_nll: float) -> ChoiceScore:
    return ChoiceScore(text, -(content_nll + end_nll), -content_nll / max(1, len(text.encode())))


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))


def _lists_by_letter(row: Row, letters: Sequence[str]) -> bool:
    """Whether the question itself names every choice by its letter."""
    asked = (row.messages or ())[:-1]
    text = "\n".join(turn.content for turn in asked)
    return all(
        re.search(rf"^\s*\(?{letter}[.):]\s*{re.escape(choice)}\s*$", text, re.MULTILINE)
        for letter, choice in zip(letters, row.checks.choices, strict=True)
    )


def _answered(row: Row, candidate: str) -> Row:
    turns = row.messages or ()
    asked = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    return replace(
        row,
        messages=(*asked, Message("assistant", candidate)),
        completion=None if row.prompt is None else candidate,
    )
