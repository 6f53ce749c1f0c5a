"""Evaluate one model for a run: its numbers as ``result.json`` keeps them, and samples to read.

The caller evaluates teacher, student before and student after on one :class:`HeldOut`, and puts
their samples side by side with :func:`side_by_side`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.evaluation.assess import Assessment, EvaluationSettings, assess
from stillhouse.evaluation.exact_match import ExactMatchReport
from stillhouse.evaluation.held_out import HeldOut, gold_text, prompt_text
from stillhouse.evaluation.nll import NLLReport
from stillhouse.evaluation.scores import Score
from stillhouse.rollout.generate import Progress
from stillhouse.teachers.protocol import Teacher

if TYPE_CHECKING:
    from stillhouse.data.chat import ChatFormat


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
    scores: dict[str, Score] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the EVAL object of ``result.json``: the NLL report's keys, ``exact_match`` and ``scores``."""
        scored = None if self.exact_match is None else asdict(self.exact_match)
        scores = {name: score.to_json() for name, score in self.scores.items()}
        return {**asdict(self.likelihood), "exact_match": scored, "scores": scores}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Evaluation:
        """Rebuild what :meth:`to_json` gave."""
        scored = data["exact_match"]
        exact_match = None if scored is None else ExactMatchReport.from_json(scored)
        scores = {name: Score.from_json(score) for name, score in data.get("scores", {}).items()}
        return cls(NLLReport.from_json(data), exact_match, scores)


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
    assessment = assess(
        model, tokenizer, chat_format, held_out, settings, seed=seed, teacher=teacher, progress=progress
    )
    return summarised(assessment, held_out)


def summarised(assessment: Assessment, held_out: HeldOut) -> tuple[Evaluation, list[Sample]]:
    """Return what a run keeps of an assessment: the numbers, and the answers to the rows that it shows."""
    assert assessment.likelihood is not None, "a run's held-out rows have answers"
    shown = [Sample(r.domain, prompt_text(r), gold_text(r), assessment.texts[r]) for r in held_out.shown]
    return Evaluation(assessment.likelihood, assessment.exact_match, assessment.scores), shown


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
