"""Measure any model on any rows, for people who have neither a recipe nor a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillhouse.data.chat import ChatFormat
from stillhouse.data.formatting import chat_format_for
from stillhouse.data.prepare import Prepared, prepare
from stillhouse.data.rows import Row
from stillhouse.data.sources import draw, load_rows
from stillhouse.errors import DataError
from stillhouse.evaluation.agreement import AgreementReport, evaluate_agreement
from stillhouse.evaluation.assess import Assessment, EvaluationSettings, assess
from stillhouse.evaluation.held_out import HeldOut, build_held_out
from stillhouse.evaluation.metrics.sandbox import Sandbox
from stillhouse.evaluation.metrics.table import has_gold
from stillhouse.evaluation.plan import MetricRequest, Metrics
from stillhouse.evaluation.scored_rows import with_scores
from stillhouse.models.head import split_model
from stillhouse.models.load import load_model, load_tokenizer
from stillhouse.models.placement import place_model
from stillhouse.models.tokenizers import tokenizer_hash, vocabulary_size
from stillhouse.models.vocabulary_map import teacher_ids
from stillhouse.recipe import DataConfig, GenerationConfig, ModelConfig, SourceConfig
from stillhouse.teachers.live import LiveTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stillhouse.rollout.generate import Progress

_HEAD_CHUNK = 512
_SEED = 0
_SMALLEST_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class EvaluateRequest:
    """What ``stillhouse evaluate`` is asked for.

    ``metrics`` is ``auto`` or names. ``generate`` bounds the rows of each score of generated text.
    ``execute_code`` lets ``code`` run what the model wrote, within a sandbox.
    """

    model: str
    data: str
    metrics: Metrics = "auto"
    limit_per_domain: int | None = None
    generate: int = 32
    max_new_tokens: int = 128
    max_seq_len: int = 1024
    execute_code: bool = False
    teacher: str | None = None
    """A model of the same tokenizer, perhaps before its vocabulary was trimmed, to compare distributions with."""


@dataclass(frozen=True)
class EvaluateResult:
    """The numbers, and ``notes`` on what is not scored and why; ``agreement`` where a teacher was named."""

    assessment: Assessment
    notes: tuple[str, ...]
    agreement: AgreementReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the file that ``--output`` writes: an EVAL object (NLL null where no row has an answer) and notes."""
        likelihood, exact_match = self.assessment.likelihood, self.assessment.exact_match
        empty: dict[str, Any] = {"nll": None, "perplexity": None, "end_of_turn_nll": None, "domains": {}}
        scores = {name: score.to_json() for name, score in self.assessment.scores.items()}
        return {
            **(empty if likelihood is None else asdict(likelihood)),
            "exact_match": None if exact_match is None else asdict(exact_match),
            "scores": scores,
            "agreement": None if self.agreement is None else asdict(self.agreement),
            "notes": list(self.notes),
        }


def evaluate_anything(
    request: EvaluateRequest,
    *,
    dtype: torch.dtype,
    device: torch.device,
    base_dir: Path,
    progress: Progress | None = None,
) -> EvaluateResult:
    """Load model and rows, and score everything that applies or was asked for.

    Raises DataError, ModelError and MissingDependencyError as loading and the metrics do; a metric
    that cannot be had is refused before the model is loaded.
    """
    model, source = ModelConfig(path=request.model), SourceConfig(path=request.data)
    tokenizer = load_tokenizer(model, base_dir=base_dir)
    rows = draw(load_rows([source], seed=_SEED, base_dir=base_dir), None, request.limit_per_domain, seed=_SEED)
    data = DataConfig(train=(source,), max_seq_len=request.max_seq_len, deduplicate=False)
    chat = chat_format_for(rows, tokenizer, data, base_dir)
    held_out = _held_out(rows, tokenizer, chat, data, request, base_dir)
    if not len(held_out.documents) and not held_out.prompted and held_out.choices is None:
        raise DataError(
            f"{request.data}: no row has an answer to score or instructions to check, so nothing is measured"
        )
    loaded = place_model(load_model(model, dtype=dtype, base_dir=base_dir), "whole", device)
    settings = EvaluationSettings(
        device=device,
        micro_batch_tokens=max(_SMALLEST_BATCH_TOKENS, request.max_seq_len),
        head_chunk=_HEAD_CHUNK,
        max_new_tokens=request.max_new_tokens,
        vocab_size=vocabulary_size(tokenizer),
    )
    assessment = assess(loaded, tokenizer, chat, held_out, settings, seed=_SEED, progress=progress)
    agreement = None
    if request.teacher is not None:
        agreement = _agreement(loaded, tokenizer, request.teacher, held_out, settings, dtype, base_dir)
    return EvaluateResult(assessment, held_out.notes, agreement)


def _agreement(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    path: str,
    held_out: HeldOut,
    settings: EvaluationSettings,
    dtype: torch.dtype,
    base_dir: Path,
) -> AgreementReport:
    """Compare the model's distributions with a teacher's on the answers of the rows.

    Raises ModelError where the two do not share a tokenizer, DataError where no row has an answer.
    """
    config = ModelConfig(path=path)
    mapping = teacher_ids(tokenizer, load_tokenizer(config, base_dir=base_dir))
    if not len(held_out.documents):
        raise DataError(f"--teacher {path}: no row has an answer on which model and teacher can be compared")
    model = place_model(load_model(config, dtype=dtype, base_dir=base_dir), "whole", torch.device(settings.device))
    assert settings.vocab_size is not None
    return evaluate_agreement(
        split_model(student),
        LiveTeacher(model, vocabulary_map=mapping, vocab_size=settings.vocab_size),
        held_out.documents,
        end_of_turn_ids=held_out.end_of_turn_ids,
        micro_batch_tokens=settings.micro_batch_tokens,
        head_chunk=settings.head_chunk,
        device=settings.device,
    )


def _held_out(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    chat: ChatFormat | None,
    data: DataConfig,
    request: EvaluateRequest,
    base_dir: Path,
) -> HeldOut:
    """Rows with an answer are documents for NLL; questions without one (IFEval's) are only generated for."""
    answered = [row for row in rows if row.text is not None or has_gold(row)]
    prepared = prepare(answered, tokenizer, data, tokenizer_hash=tokenizer_hash(tokenizer), base_dir=base_dir)
    questions, refused = _askable([row for row in rows if row.text is None and not has_gold(row)], tokenizer, chat)
    sandbox = Sandbox() if request.execute_code else None
    held_out = build_held_out(prepared, tokenizer, chat, GenerationConfig(rows=0, samples=0), seed=_SEED)
    held_out = with_scores(
        held_out,
        replace(prepared, questions=tuple(questions)),
        tokenizer,
        MetricRequest(request.metrics, request.generate, None, _SEED, sandbox),
        data,
        base_dir,
    )
    return replace(held_out, notes=(*held_out.notes, *_data_notes(prepared, len(questions)), *refused))


def _askable(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, chat: ChatFormat | None
) -> tuple[list[Row], list[str]]:
    """The rows that the template takes, and a note on the others.

    Raises DataError where there is no template.
    """
    template = chat if chat is not None or not rows else ChatFormat(tokenizer)
    kept, problems = [], []
    for row in rows:
        assert template is not None
        try:
            template.render_prompt(row.messages or ())
        except DataError as error:
            problems.append(f"{row.where}: {error}")
        else:
            kept.append(row)
    return kept, [f"{len(problems)} questions cannot be asked; the first: {problems[0]}"] if problems else []


def _data_notes(prepared: Prepared, questions: int) -> list[str]:
    notes = []
    if questions:
        notes.append(f"{questions} rows have no answer, so they have no NLL")
    if prepared.report.num_rejected:
        reasons = ", ".join(f"{name} {count}" for name, count in prepared.report.rejected.items() if count)
        notes.append(f"{prepared.report.num_rejected} rows cannot be used ({reasons})")
    if prepared.report.truncated:
        notes.append(f"{prepared.report.truncated} conversations were cut at max_seq_len, their end is not scored")
    return notes
