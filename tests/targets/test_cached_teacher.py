"""Targets of batches, in their order, read ahead of time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from worlds import TableTeacher, identity, make_documents, settings

from stillhouse.data.batch import Batch
from stillhouse.data.batching import collate_packed, collate_padded, make_micro_batches
from stillhouse.errors import DataError
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.cached_teacher import CachedTeacher
from stillhouse.targets.capture import capture
from stillhouse.targets.codec import TopKGhost

DOCUMENTS = make_documents(30)


@pytest.fixture
def teacher(tmp_path: Path) -> CachedTeacher:
    cache = TargetCache.open_or_create(tmp_path, identity(TopKGhost(k=5, value_bits=16)))
    capture(TableTeacher(), DOCUMENTS, cache, settings(shard_bytes=600))
    return CachedTeacher(cache, DOCUMENTS)


def check(batch: Batch, teacher: CachedTeacher) -> None:
    found = teacher.targets(batch)
    projection = TableTeacher().targets(batch).projection
    p = (projection.hidden @ projection.weight[: found.vocab_size].T).softmax(-1)
    kept, ids = p.topk(5, dim=1)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.weight.double(), kept, rtol=1e-3, atol=1e-6)
    assert found.teacher_nll is not None
    nll = -p.log().gather(1, batch.labels[:, None]).squeeze(1)
    torch.testing.assert_close(found.teacher_nll.double(), nll, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_rows_are_those_of_the_batch(teacher: CachedTeacher, layout: str) -> None:
    for batch in make_micro_batches(DOCUMENTS, range(30), micro_batch_tokens=60, layout=layout, pad_id=0):
        check(batch, teacher)


def test_document_twice_in_a_batch(teacher: CachedTeacher) -> None:
    check(collate_padded(DOCUMENTS, [4, 4, 4, 9, 4], 0), teacher)
    check(collate_packed(DOCUMENTS, [[4, 4], [4, 9]], 0), teacher)


def test_batch_without_targets(teacher: CachedTeacher) -> None:
    batch = collate_padded(DOCUMENTS, [0], 0)
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = Batch(batch.input_ids, batch.position_ids, torch.zeros_like(batch.loss_mask), nothing, nothing)
    assert len(teacher.targets(empty)) == 0


def test_stream_gives_what_targets_gives_and_reads_ahead(teacher: CachedTeacher) -> None:
    batches = make_micro_batches(DOCUMENTS, range(30), micro_batch_tokens=60, layout="padded", pad_id=0)
    asked = 0

    def counting() -> Iterator[Batch]:
        nonlocal asked
        for batch in batches:
            asked += 1
            yield batch

    stream = teacher.stream(counting(), depth=3)
    first, _ = next(stream)
    assert first is batches[0]
    assert asked == 4
    rest = list(stream)
    assert [batch for batch, _ in rest] == batches[1:]
    for batch, targets in rest:
        assert torch.equal(targets.weight, teacher.targets(batch).weight)


def test_stream_that_is_left_early_ends_its_thread(teacher: CachedTeacher) -> None:
    batches = make_micro_batches(DOCUMENTS, range(30), micro_batch_tokens=60, layout="padded", pad_id=0)
    stream = teacher.stream(batches)
    next(stream)
    assert any(t.name.startswith("teacher-targets") for t in threading.enumerate())
    stream.close()
    assert not any(t.name.startswith("teacher-targets") for t in threading.enumerate())


def test_missing_documents_are_refused_at_the_start(tmp_path: Path) -> None:
    cache = TargetCache.open_or_create(tmp_path, identity())
    with pytest.raises(DataError, match="30 of 30 documents are not in the cache"):
        CachedTeacher(cache, DOCUMENTS)


def test_parameters_are_those_of_the_captured_model(teacher: CachedTeacher) -> None:
    assert teacher.num_parameters == 12
