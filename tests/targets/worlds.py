"""A small world for the cache: documents, and a teacher that is a table. Importable by child processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stillhouse.data.batch import Batch
from stillhouse.data.document import Document, DocumentSet, document_uid
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.capture import CaptureSettings, capture
from stillhouse.targets.codec import Codec, TopKGhost
from stillhouse.targets.manifest import CacheIdentity
from stillhouse.teachers.protocol import DenseTargets, Projection

VOCAB = 97
TOKENIZER = "tokenizer-of-the-tests"


def make_documents(count: int, seed: int = 0) -> DocumentSet:
    """Documents of 2 to 20 random tokens; about two thirds of them are targets, at least one in each."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        length = int(rng.integers(2, 21))
        ids = rng.integers(0, VOCAB, length).astype(np.int32)
        mask = rng.random(length) < 0.66
        mask[-1], mask[0] = True, False
        documents.append(Document(ids, mask, 0, document_uid(ids, mask, TOKENIZER)))
    return DocumentSet.build(documents, range(count), ["all"], TOKENIZER)


class TableTeacher:
    """Predicts from the last token alone, so any batching gives the same logits."""

    num_parameters = 12

    def __init__(self, seed: int = 1, delay_seconds: float = 0.0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.table = torch.randn(VOCAB, 8, generator=g, dtype=torch.float64)
        self.head = torch.randn(VOCAB + 3, 8, generator=g, dtype=torch.float64)
        self.batches = 0
        self._delay = delay_seconds

    def targets(self, batch: Batch, layers: Sequence[int] = ()) -> DenseTargets:
        self.batches += 1
        time.sleep(self._delay)
        return DenseTargets(Projection(self.table[batch.input_ids[batch.predictor_mask]], self.head))

    def probabilities(self, documents: DocumentSet, index: int, temperature: float = 1.0) -> torch.Tensor:
        """The dense truth for one document, [targets, VOCAB]."""
        document = documents[index]
        before = torch.from_numpy(document.input_ids.astype(np.int64))[:-1][torch.from_numpy(document.loss_mask[1:])]
        return ((self.table[before] @ self.head[:VOCAB].T) / temperature).softmax(-1)


def identity(codec: Codec | None = None, **changes: object) -> CacheIdentity:
    values: dict[str, object] = {
        "teacher": "fingerprint",
        "tokenizer": TOKENIZER,
        "codec": codec or TopKGhost(k=5, value_bits=12),
        "temperature": 1.0,
        "vocab_size": VOCAB,
        "seed": 3,
        "teacher_parameters": 12,
    }
    return CacheIdentity(**{**values, **changes})  # type: ignore[arg-type]


def settings(**changes: object) -> CaptureSettings:
    return CaptureSettings(**{"micro_batch_tokens": 64, "chunk": 16, "compiled": False, **changes})  # type: ignore[arg-type]


if __name__ == "__main__":  # a capture for other processes to start: FOLDER DOCUMENTS DELAY
    torch.set_num_threads(1)
    folder, count, delay = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    cache = TargetCache.open_or_create(folder, identity())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    capture(TableTeacher(delay_seconds=delay), make_documents(count), cache, settings(shard_seconds=0.0))
    sys.stdout.write("done\n")
    sys.stdout.flush()
