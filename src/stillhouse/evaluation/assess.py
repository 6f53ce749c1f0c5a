"""Everything one model is measured by, on one :class:`HeldOut`: NLL, and each score with its items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.batch import Batch
from stillhouse.data.rows import Row
from stillhouse.evaluation.exact_match import ExactMatchReport, exact_match_report
from stillhouse.evaluation.held_out import HeldOut, gold_text, prompt_encoder, prompt_text, stop_ids
from stillhouse.evaluation.metrics.calibration import TokenCalibration
from stillhouse.evaluation.metrics.choices import ChoiceOutcome, choice_calibration, score_choices
from stillhouse.evaluation.metrics.table import EXACT_MATCH, has_gold
from stillhouse.evaluation.nll import NLLReport, TokenScorer, measure_nll
from stillhouse.evaluation.scores import Item, Score, item_scores
from stillhouse.evaluation.token_nll import token_nll
from stillhouse.models.head import split_model
from stillhouse.rollout.generate import GenerationSettings, Progress, fits_context, generate
from stillhouse.rollout.mode import evaluating
from stillhouse.teachers.protocol import Projection, Teacher

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
class Assessment:
    """One model's numbers.

    ``likelihood`` is None where no row has an answer to score. ``items`` are the scored rows, each
    once; ``texts`` what was generated, by row.
    """

    likelihood: NLLReport | None
    scores: dict[str, Score]
    items: list[Item]
    texts: dict[Row, str]

    @property
    def exact_match(self) -> ExactMatchReport | None:
        """Exact match by domain, or None where no row was scored by it."""
        scored = [item for item in self.items if "exact_match" in item.parts]
        if not scored:
            return None
        hits = [item.parts["exact_match"].value == 1 for item in scored]
        return exact_match_report([item.domain for item in scored], hits)


def assess(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat | None,
    held_out: HeldOut,
    settings: EvaluationSettings,
    *,
    seed: int,
    teacher: Teacher | None = None,
    progress: Progress | None = None,
) -> Assessment:
    """Measure ``model``; the arguments are those of :func:`stillhouse.evaluation.suite.evaluate_model`.

    Raises DataError if documents are given and none has a content token, ModelError if an NLL is not finite.
    """
    project, module, vocab_size = _projector(model, settings, teacher)
    likelihood, scores = None, {}
    outcomes: list[ChoiceOutcome] = []
    with evaluating(module):
        if len(held_out.documents):
            likelihood, calibration = _likelihood(project, vocab_size, held_out, settings)
            if calibration is not None:
                scores["token_ece"] = calibration
        if held_out.choices is not None and held_out.choices.questions:
            outcomes = score_choices(
                _nll_scorer(project, vocab_size, settings),
                held_out.choices,
                micro_batch_tokens=settings.micro_batch_tokens,
                device=settings.device,
                process_group=settings.process_group,
            )
            scores["multiple_choice_ece"] = choice_calibration(outcomes)
    texts = _answers(model, tokenizer, chat_format, held_out.prompted, settings, seed=seed, progress=progress)
    items = joined_items(held_out, outcomes, texts)
    return Assessment(likelihood, {**item_scores(items), **scores}, items, texts)


def teacher_scorer(teacher: Teacher, head_chunk: int) -> TokenScorer:
    """Return the function from a batch to the teacher's NLL of its N targets, float32 [N]."""

    def score(batch: Batch) -> Tensor:
        return token_nll(teacher.targets(batch).projection, batch.labels, vocab_size=None, chunk=head_chunk)

    return score


Projector = Callable[[Batch], Projection]
"""Maps a batch on the device to the hidden states of its N targets with the head."""


def _projector(
    model: PreTrainedModel, settings: EvaluationSettings, teacher: Teacher | None
) -> tuple[Projector, nn.Module, int | None]:
    """The model's logits in factored form, the module that computes them, and how many ids are real."""
    if teacher is not None:
        return (lambda batch: teacher.targets(batch).projection), model, None
    parts = split_model(model)
    return (lambda batch: parts.projection(parts.hidden(batch))), parts.backbone, settings.vocab_size


def _nll_scorer(project: Projector, vocab_size: int | None, settings: EvaluationSettings) -> TokenScorer:
    return lambda batch: token_nll(project(batch), batch.labels, vocab_size=vocab_size, chunk=settings.head_chunk)


def _likelihood(
    project: Projector, vocab_size: int | None, held_out: HeldOut, settings: EvaluationSettings
) -> tuple[NLLReport, Score | None]:
    """NLL by domain, and calibration in the same pass."""
    calibration = None
    if held_out.calibrated:
        calibration = TokenCalibration(
            project,
            num_documents=len(held_out.documents),
            end_of_turn_ids=held_out.end_of_turn_ids,
            vocab_size=vocab_size,
            head_chunk=settings.head_chunk,
        )
    report = measure_nll(
        _nll_scorer(project, vocab_size, settings) if calibration is None else calibration,
        held_out.documents,
        end_of_turn_ids=held_out.end_of_turn_ids,
        byte_counts=held_out.byte_counts,
        micro_batch_tokens=settings.micro_batch_tokens,
        device=settings.device,
        process_group=settings.process_group,
    )
    return report, None if calibration is None else calibration.score(settings.device, settings.process_group)


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat | None,
    rows: Sequence[Row],
    settings: EvaluationSettings,
    *,
    seed: int,
    progress: Progress | None,
) -> dict[Row, str]:
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
    texts = dict.fromkeys(rows, "")
    for index, generation in zip(fitting, generations, strict=True):
        texts[rows[index]] = generation.text
    return texts


def joined_items(held_out: HeldOut, outcomes: Sequence[ChoiceOutcome], texts: dict[Row, str]) -> list[Item]:
    """Join what each row got, in the order in which rows are met."""
    items: dict[Row, Item] = {}

    def item_of(row: Row) -> Item:
        if row not in items:
            gold = gold_text(row) if has_gold(row) else None
            items[row] = Item(row.id, row.domain, prompt_text(row), gold, texts.get(row))
        return items[row]

    for outcome in outcomes:
        item = item_of(outcome.question.row)
        item.choices = outcome.scores
        item.parts |= outcome.parts
    for metric, rows in ((EXACT_MATCH, held_out.scored), *held_out.checked):
        for row in rows:
            item_of(row).parts |= metric.parts(row, texts[row])
    return list(items.values())
