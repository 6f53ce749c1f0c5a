"""Documents in columns."""

from __future__ import annotations

import numpy as np

from stillhouse.data.document import Document, DocumentSet, document_uid


def make(ids: list[int], mask: list[bool], domain: int = 0, tokenizer: str = "t") -> Document:
    tokens, targets = np.array(ids, np.int32), np.array(mask, np.bool_)
    return Document(tokens, targets, domain, document_uid(tokens, targets, tokenizer))


def test_uid_depends_on_ids_mask_and_tokenizer() -> None:
    uids = {
        make([1, 2], [False, True]).uid,
        make([1, 3], [False, True]).uid,
        make([1, 2], [False, False]).uid,
        make([1, 2], [False, True], tokenizer="other").uid,
    }
    assert len(uids) == 4
    assert make([1, 2], [False, True], domain=1).uid in uids  # the domain is not content
    assert all(len(uid) == 16 for uid in uids)


def test_set_gives_back_its_documents() -> None:
    documents = [make([1, 2, 3], [False, True, True], 1), make([4], [False]), make([5, 6], [False, True])]
    built = DocumentSet.build(documents, [7, 7, 9], ("a", "b"), "t")
    assert (len(built), built.lengths.tolist(), built.num_targets.tolist()) == (3, [3, 1, 2], [2, 0, 1])
    for got, expected in zip(built, documents, strict=True):
        assert got.input_ids.tolist() == expected.input_ids.tolist()
        assert got.loss_mask.tolist() == expected.loss_mask.tolist()
        assert (got.domain, got.uid) == (expected.domain, expected.uid)
    picked = built.select([2, 0])
    assert (picked.rows.tolist(), picked.domain_ids.tolist(), picked.num_targets.tolist()) == ([9, 7], [0, 1], [1, 2])


def test_empty_set_is_a_set() -> None:
    empty = DocumentSet.build([], [], ("a",), "t")
    assert (len(empty), empty.lengths.tolist(), empty.num_targets.tolist()) == (0, [], [])
    assert len(empty.select([])) == 0
