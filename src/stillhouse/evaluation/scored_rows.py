"""Put the rows of every score into what a model is measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.data.prepare import Prepared, read_template
from stillhouse.evaluation.held_out import HeldOut
from stillhouse.evaluation.metrics.choices import build_choices
from stillhouse.evaluation.plan import MetricRequest, plan_metrics
from stillhouse.recipe import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def with_scores(
    held_out: HeldOut,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerFast,
    request: MetricRequest,
    data: DataConfig,
    base_dir: Path,
) -> HeldOut:
    """Return ``held_out`` with the rows of every score that ``request`` names, drawn from those of ``prepared``.

    ``tokenizer`` is the one of ``prepared.documents``. Raises DataError and MissingDependencyError as
    :func:`stillhouse.evaluation.plan.plan_metrics` does.
    """
    plan = plan_metrics([*prepared.rows, *prepared.questions], request)
    by_name = {metric.name: (metric, rows) for metric, rows in plan.generated}
    _, exact_match_rows = by_name.pop("exact_match", (None, ()))
    choices, notes = None, plan.notes
    if plan.choice_rows:
        choices = build_choices(
            plan.choice_rows,
            tokenizer,
            template=read_template(data.chat_template, base_dir),
            max_seq_len=data.max_seq_len,
            end_of_turn_ids=held_out.end_of_turn_ids,
            tokenizer_hash=prepared.documents.tokenizer_hash,
        )
        if choices.skipped:
            notes = (
                *notes,
                f"{choices.skipped} multiple-choice questions are not scored: a choice does not fit"
                f" {data.max_seq_len} tokens, or the chat template refuses it",
            )
    return replace(
        held_out,
        scored=exact_match_rows,
        checked=tuple(by_name.values()),
        choices=choices,
        calibrated=plan.calibrated,
        notes=notes,
    )
