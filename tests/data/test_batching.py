"""Batches: every document once, within the budget, and isolated from its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from stillhouse.data.batching import (
    Layout,
    best_fit_decreasing,
    collate_packed,
    collate_padded,
    group_by_length,
    make_micro_batches,
)
from stillhouse.data.document import Document, DocumentSet, document_uid

PAD = 2


def document_set(lengths: list[int], vocab_size: int = 300) -> DocumentSet:
    """Documents of counted-up ids; every token but the first is a target; domains alternate."""
    documents = []
    for number, length in enumerate(lengths):
        ids = (np.arange(length) + 7 * number) % vocab_size
        mask = np.arange(length) > 0
        documents.append(
            Document(ids.astype(np.int32), mask, number % 2, document_uid(ids.astype(np.int32), mask, "t"))
        )
    return DocumentSet.build(documents, range(len(lengths)), ("even", "odd"), "t")


def test_best_fit_decreasing_of_the_example() -> None:
    # 5; 4 does not fit beside it (9 > 8): new bin; 3 fits both, bin {5} is fuller: {5,3}; 2 and 2 join {4}.
    lengths = [5, 4, 3, 2, 2]
    assert [[lengths[i] for i in group] for group in best_fit_decreasing(lengths, 8)] == [[5, 3], [4, 2, 2]]


def test_packed_segments_of_5_and_3_restart_and_score_6_targets() -> None:
    documents = document_set([5, 3])
    batch = collate_packed(documents, [[0, 1]], PAD)
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.loss_mask.tolist() == [[False, True, True, True, True, False, True, True]]
    assert len(batch.labels) == 6  # 4 + 2: the first token of each segment is none
    assert batch.document_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.domain_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.packed


def test_padded_rows_end_in_padding_that_is_no_target() -> None:
    documents = document_set([2, 4])
    batch = collate_padded(documents, [1, 0], PAD)
    assert batch.input_ids.tolist() == [[7, 8, 9, 10], [0, 1, PAD, PAD]]
    assert batch.loss_mask.tolist() == [[False, True, True, True], [False, True, False, False]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    assert (batch.labels.tolist(), batch.document_ids.tolist()) == ([8, 9, 10, 1], [1, 1, 1, 0])
    assert not batch.packed


def test_first_token_of_a_document_is_never_a_target() -> None:
    ids = np.arange(3, dtype=np.int32)
    wrong = Document(ids, np.ones(3, np.bool_), 0, bytes(16))
    documents = DocumentSet.build([wrong], [0], ("a",), "t")
    assert collate_padded(documents, [0], PAD).loss_mask.tolist() == [[False, True, True]]


lengths_and_budget = st.tuples(st.lists(st.integers(1, 20), min_size=1, max_size=25), st.integers(1, 40))


@given(lengths_and_budget)
@settings(max_examples=60, deadline=None)
def test_groups_hold_every_position_once_within_capacity(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    packed, padded = best_fit_decreasing(lengths, capacity), group_by_length(lengths, capacity)
    for groups in (packed, padded):
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= capacity or len(group) == 1 for group in packed)
    assert all(max(lengths[i] for i in group) * len(group) <= capacity or len(group) == 1 for group in padded)
    # No two bins could have been one: best fit leaves at most one bin half empty.
    half_empty = [group for group in packed if 2 * sum(lengths[i] for i in group) <= capacity]
    assert len(half_empty) <= 1


@given(lengths_and_budget, st.sampled_from(["padded", "packed"]))
@settings(max_examples=40, deadline=None)
def test_micro_batches_carry_each_document_whole(case: tuple[list[int], int], layout: Layout) -> None:
    lengths, budget = case
    documents = document_set(lengths)
    chosen = list(range(0, len(lengths), 2))
    batches = make_micro_batches(documents, chosen, micro_batch_tokens=budget, layout=layout, pad_id=PAD)
    found: list[tuple[int, list[int]]] = []
    for batch in batches:
        assert batch.input_ids.numel() <= budget or batch.input_ids.shape[0] == 1
        assert int(batch.predictor_mask.sum()) == len(batch.labels) == len(batch.domain_ids)
        # The predictor stands one before its target, in the same document.
        positions = batch.position_ids[batch.loss_mask]
        assert torch.equal(batch.position_ids[batch.predictor_mask], positions - 1)
        owners = batch.document_ids
        found += [(int(i), batch.labels[owners == i].tolist()) for i in owners.unique()]
    expected = {i: documents[i].input_ids[1:].tolist() for i in chosen if lengths[i] > 1}
    assert len(found) == len(expected)
    assert dict(found) == expected
    again = make_micro_batches(documents, chosen, micro_batch_tokens=budget, layout=layout, pad_id=PAD)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_documents_do_not_see_each_other(tiny_model: LlamaForCausalLM, layout: Layout, attention: str) -> None:
    tiny_model.set_attn_implementation(attention)
    documents = document_set([9, 5, 12, 3, 1, 2], vocab_size=tiny_model.config.vocab_size)
    (batch,) = make_micro_batches(documents, range(6), micro_batch_tokens=72, layout=layout, pad_id=PAD)
    with torch.no_grad():
        logits = tiny_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        at_targets = logits[batch.predictor_mask]
        for i in range(6):
            alone = tiny_model(input_ids=torch.from_numpy(documents[i].input_ids).long()[None], use_cache=False).logits
            torch.testing.assert_close(at_targets[batch.document_ids == i], alone[0, :-1], atol=1e-5, rtol=1e-5)
