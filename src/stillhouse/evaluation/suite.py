"""Evaluate one model: NLL per domain, exact match of its answers, and samples to read.

The caller evaluates teacher, student before and student after on one :class:`HeldOut`, and puts
their samples side by side with :func:`side_by_side`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.batch import Batch
from stillhouse.data.rows import Row
from stillhouse.evaluation.exact_match import ExactMatchReport, score_exact_match
from stillhouse.evaluation.held_out import HeldOut, gold_text, prompt_encoder, prompt_text, stop_ids
from stillhouse.evaluation.nll import NLLReport, TokenScorer, evaluate_nll, measure_nll
from stillhouse.evaluation.token_nll import token_nll
from stillhouse.models.head import split_model
from stillhouse.rollout.generate import GenerationSettings, Progress, fits_context, generate
from stillhouse.teachers.protocol import Teacher

if TYPE_CHECKING:
    from stillhouse.data.chat import ChatFormat


@dataclass(frozen=True)
class EvaluationSettings:
    """How to run the models. Tokens are padded ones; ``vocab_size`` is V*, None for all rows of the head."""

    device: torch.device | str
    micro_batch_tokens: int
    head_chunk: int
    max_new_tokens: int
    vocab_size: int | None = None
    generation_batch_tokens: int = 8192
    process_group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class Sample:
    """One model's answer to one row that the report shows."""

    domain: str
    prompt: str
    gold: str
    text: str


@dataclass(frozen=True)
class Evaluation:
    """One model's numbers; ``exact_match`` is None where no row was scored."""

    likelihood: NLLReport
    exact_match: ExactMatchReport | None

    def to_json(self) -> dict[str, Any]:
        """Return the EVAL object of ``result.json``: the NLL report's keys and ``exact_match``."""
        scored = None if self.exact_match is None else asdict(self.exact_match)
        return {**asdict(self.likelihood), "exact_match": scored}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Evaluation:
        """Rebuild what :meth:`to_json` gave."""
        scored = data["exact_match"]
        return cls(NLLReport.from_json(data), None if scored is None else ExactMatchReport.from_json(scored))


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat | None,
    held_out: HeldOut,
    settings: EvaluationSettings,
    *,
    seed: int,
    teacher: Teacher | None = None,
    progress: Progress | None = None,
) -> tuple[Evaluation, list[Sample]]:
    """Return the model's numbers, and its samples in the order of ``held_out.shown``.

    ``tokenizer`` and ``chat_format`` are the model's own. ``teacher`` says that ``model`` is the
    one behind this teacher: its NLL then comes through the protocol, which knows how the
    documents' ids map to the model's. Generation is greedy. Under torch.distributed the documents
    are shared out, while every rank generates the same answers: they are few, and sharded models
    need all ranks in each forward pass.

    A prompt that leaves no room for ``max_new_tokens`` in this model's context counts as wrong, so
    that all models are scored on the same rows.
    """
    likelihood = _likelihood(model, held_out, settings, teacher)
    rows = list(dict.fromkeys((*held_out.scored, *held_out.shown)))
    texts = _answers(model, tokenizer, chat_format, rows, settings, seed=seed, progress=progress)
    text_of = dict(zip(rows, texts, strict=True))
    samples = [Sample(row.domain, prompt_text(row), gold_text(row), text_of[row]) for row in held_out.shown]
    return Evaluation(likelihood, _exact_match(held_out.scored, text_of)), samples


def teacher_scorer(teacher: Teacher, head_chunk: int) -> TokenScorer:
    """Return the function from a batch to the teacher's NLL of its N targets, float32 [N]."""

    def score(batch: Batch) -> Tensor:
        return token_nll(teacher.targets(batch).projection, batch.labels, vocab_size=None, chunk=head_chunk)

    return score


def side_by_side(
    teacher: Sequence[Sample] | None, before: Sequence[Sample], after: Sequence[Sample]
) -> list[dict[str, str | None]]:
    """Join the samples of three models on the same rows into the ``samples`` of ``result.json``."""
    teacher_texts = [None] * len(after) if teacher is None else [sample.text for sample in teacher]
    return [
        {
            "domain": new.domain,
            "prompt": new.prompt,
            "gold": new.gold,
            "teacher": teacher_text,
            "student_before": old.text,
            "student_after": new.text,
        }
        for teacher_text, old, new in zip(teacher_texts, before, after, strict=True)
    ]


def _likelihood(
    model: PreTrainedModel, held_out: HeldOut, settings: EvaluationSettings, teacher: Teacher | None
) -> NLLReport:
    common: dict[str, Any] = {
        "end_of_turn_ids": held_out.end_of_turn_ids,
        "byte_counts": held_out.byte_counts,
        "micro_batch_tokens": settings.micro_batch_tokens,
        "device": settings.device,
        "process_group": settings.process_group,
    }
    if teacher is not None:
        return measure_nll(teacher_scorer(teacher, settings.head_chunk), held_out.documents, **common)
    return evaluate_nll(
        split_model(model),
        held_out.documents,
        head_chunk=settings.head_chunk,
        vocab_size=settings.vocab_size,
        **common,
    )


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat | None,
    rows: Sequence[Row],
    settings: EvaluationSettings,
    *,
    seed: int,
    progress: Progress | None,
) -> list[str]:
    """The greedy continuation of each row's prompt; empty where the prompt does not fit the context."""
    encode = prompt_encoder(tokenizer, chat_format)
    prompts = [encode(row) for row in rows]
    fitting = [i for i, prompt in enumerate(prompts) if fits_context(model, len(prompt), settings.max_new_tokens)]
    generations = generate(
        model,
        tokenizer,
        [prompts[i] for i in fitting],
        GenerationSettings(
            settings.max_new_tokens, stop_ids(tokenizer, chat_format), batch_tokens=settings.generation_batch_tokens
        ),
        seed=seed,
        progress=progress,
    )
    texts = [""] * len(rows)
    for index, generation in zip(fitting, generations, strict=True):
        texts[index] = generation.text
    return texts


def _exact_match(rows: Sequence[Row], text_of: dict[Row, str]) -> ExactMatchReport | None:
    if not rows:
        return None
    domains = [row.domain for row in rows]
    return score_exact_match(domains, [text_of[row] for row in rows], [row.answer or "" for row in rows])
