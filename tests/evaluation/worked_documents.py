"""Three documents whose NLL is read off their ids. Imports no transformers: a spawned process loads it too."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.document import Document, DocumentSet
from stillhouse.evaluation.nll import NLLReport, TokenScorer, measure_nll

END = 9


def documents_of(*documents: tuple[int, list[int], list[int]]) -> DocumentSet:
    """(domain, ids, mask) each; domains a, b, c."""
    built = [
        Document(np.array(ids, np.int32), np.array(mask, np.bool_), domain, bytes([i] * 16))
        for i, (domain, ids, mask) in enumerate(documents)
    ]
    return DocumentSet.build(built, range(len(built)), ("a", "b", "c"), "hash")


def label_as_nll(batch: Batch) -> Tensor:
    """A model whose NLL of token t is t / 10, so that expected sums are read off the ids."""
    return batch.labels.float() / 10


WORKED = documents_of(
    (0, [1, 2, 3, END], [0, 1, 1, 1]),
    (0, [1, 4, END], [0, 1, 1]),
    (1, [1, 8], [0, 1]),
)


def worked_report(
    byte_counts: list[int] | None = None,
    documents: DocumentSet = WORKED,
    micro_batch_tokens: int = 8,
    score: TokenScorer = label_as_nll,
) -> NLLReport:
    counts = None if byte_counts is None else np.array(byte_counts, np.int64)
    return measure_nll(
        score,
        documents,
        end_of_turn_ids=frozenset({END}),
        byte_counts=counts,
        micro_batch_tokens=micro_batch_tokens,
        device="cpu",
    )
