"""Documents whose last answer is replaced by one that a model wrote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stillhouse.data.document import Document, document_uid
from stillhouse.data.rows import Row
from stillhouse.errors import DataError
from stillhouse.recipe import StageConfig


def refuse_plain_text(rows: Sequence[Row], stage: StageConfig) -> None:
    """Raise DataError when a row is plain text: it has no prompt that a model could answer."""
    plain = next((row for row in rows if row.text is not None), None)
    if plain is not None:
        raise DataError(
            f"{plain.where}: plain text has no prompt, and stages.{stage.name}.objective.type={stage.objective.type} "
            "has a model answer prompts; use rows with messages or prompt and completion, or objective.type kd or sft"
        )


def prompt_ids(document: Document) -> list[int]:
    """Return everything before the document's last run of targets: what the answer is conditioned on.

    Equal to the ids that evaluation conditions on, since the targets of a turn are its content and
    its end and nothing before them.
    """
    targets = np.flatnonzero(document.loss_mask)
    breaks = np.flatnonzero(np.diff(targets) > 1)
    first = int(targets[breaks[-1] + 1] if len(breaks) else targets[0])
    return [int(i) for i in document.input_ids[:first]]


def with_answer(prompt: Sequence[int], answer: Sequence[int], domain: int, tokenizer_hash: str) -> Document:
    """Return prompt and answer as a document whose targets are the answer, its stop id included.

    An answer that was cut off by its length has no stop id, so the student is not taught to stop there.
    """
    ids = np.array([*prompt, *answer], dtype=np.int32)
    mask = np.zeros(len(ids), dtype=np.bool_)
    mask[len(prompt) :] = True
    return Document(ids, mask, domain, document_uid(ids, mask, tokenizer_hash))
