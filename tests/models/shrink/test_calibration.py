"""Which documents measure importance, and how."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_families import family_model, random_documents
from stillhouse.data.document import Document, DocumentSet
from stillhouse.errors import ModelError
from stillhouse.models.head import apply_head, split_model
from stillhouse.models.shrink.calibration import HEAD_CHUNK, calibration_set, document_batches, nll_sum
from stillhouse.teachers.protocol import Projection


def lopsided() -> DocumentSet:
    """20 documents of domain 0, 3 of domain 1 (the last without targets)."""
    documents = list(random_documents(61, count=23))
    moved = [
        Document(d.input_ids, d.loss_mask if i < 22 else np.zeros_like(d.loss_mask), int(i >= 20), d.uid)
        for i, d in enumerate(documents)
    ]
    return DocumentSet.build(moved, range(23), ("a", "b"), "test")


def test_domains_are_drawn_evenly_and_from_the_seed() -> None:
    documents = lopsided()
    chosen = calibration_set(documents, 4, seed=0)
    assert sorted(chosen.domain_ids.tolist()) == [0, 0, 1, 1]
    assert np.array_equal(chosen.uids, calibration_set(documents, 4, seed=0).uids)
    assert not np.array_equal(chosen.uids, calibration_set(documents, 4, seed=1).uids)
    assert len(calibration_set(documents, 100, seed=0)) == 22


def test_no_target_at_all_is_an_error() -> None:
    with pytest.raises(ModelError, match="no training document has a target"):
        calibration_set(lopsided().select([22]), 1, seed=0)


def test_documents_become_batches_of_one(documents: DocumentSet) -> None:
    for document, batch in zip(documents, document_batches(documents, torch.device("cpu")), strict=True):
        assert batch.input_ids[0].tolist() == document.input_ids.tolist()
        assert batch.labels.tolist() == document.input_ids[document.loss_mask].tolist()
        assert batch.position_ids[0].tolist() == list(range(document.num_tokens))
        assert batch.domain_ids.tolist() == [document.domain] * document.num_targets


def test_nll_in_chunks_is_the_nll_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 2 * HEAD_CHUNK + 3
    hidden = torch.randn(rows, 16, generator=generator)
    labels = torch.randint(61, (rows,), generator=generator)
    projection: Projection = split_model(family_model("gemma2")).projection(hidden)
    expected = torch.nn.functional.cross_entropy(apply_head(projection).double(), labels, reduction="sum")
    assert nll_sum(projection, labels) == pytest.approx(expected.item(), rel=1e-5)
