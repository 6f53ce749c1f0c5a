"""Cut documents into micro-batches by a budget of padded tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from stillhouse.data.batch import Batch
from stillhouse.data.document import DocumentSet, Int64Array

Layout = Literal["padded", "packed"]


def make_micro_batches(
    documents: DocumentSet,
    indices: Sequence[int] | Int64Array,
    *,
    micro_batch_tokens: int,
    layout: Layout,
    pad_id: int,
) -> list[Batch]:
    """Return batches that hold the documents at ``indices`` once each, at most the budget of padded tokens a batch.

    ``padded``: rows of like length together, the longest first. ``packed``: one row of several
    isolated documents a batch, filled by best-fit-decreasing. A document longer than the budget
    makes a batch of its own. The same arguments give the same batches.
    """
    chosen = np.asarray(indices, np.int64)
    lengths = documents.lengths[chosen]
    if layout == "packed":
        return [
            collate_packed(documents, [[int(chosen[i]) for i in group]], pad_id)
            for group in best_fit_decreasing(lengths, micro_batch_tokens)
        ]
    return [
        collate_padded(documents, [int(chosen[i]) for i in group], pad_id)
        for group in group_by_length(lengths, micro_batch_tokens)
    ]


def group_by_length(lengths: Sequence[int] | Int64Array, budget: int) -> list[list[int]]:
    """Group positions by falling length so that rows times longest row stays within ``budget``."""
    groups: list[list[int]] = []
    longest = 0
    for i in _longest_first(lengths):
        if groups and (len(groups[-1]) + 1) * longest <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = int(lengths[i])
    return groups


def best_fit_decreasing(lengths: Sequence[int] | Int64Array, capacity: int) -> list[list[int]]:
    """Pack positions into bins: longest first, each into the fullest bin that still has room.

    {5, 4, 3, 2, 2} with capacity 8 gives {5, 3} and {4, 2, 2}. An item above the capacity gets a
    bin of its own.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free, bin), sorted: the first with enough room is the fullest
    for i in _longest_first(lengths):
        length = int(lengths[i])
        place = bisect_left(room, (length, -1))
        if place == len(room):
            bins.append([])
            free, number = max(capacity, length), len(bins) - 1
        else:
            free, number = room.pop(place)
        bins[number].append(i)
        insort(room, (free - length, number))
    return bins


def _longest_first(lengths: Sequence[int] | Int64Array) -> list[int]:
    return [int(i) for i in np.argsort(-np.asarray(lengths, np.int64), kind="stable")]


def collate_padded(documents: DocumentSet, indices: Sequence[int], pad_id: int) -> Batch:
    """Return one document a row, [B, longest], padded on the right."""
    return _collate(documents, [[i] for i in indices], pad_id)


def collate_packed(documents: DocumentSet, groups: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Return one group of documents a row, [B, longest group]; positions restart at every document."""
    return _collate(documents, groups, pad_id)


def _collate(documents: DocumentSet, groups: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Lay out rows of documents.

    Padding counts on from the last document's positions: a jump would read as one more packed
    document. Its ids are never targets, so ``pad_id`` may equal a real token.
    """
    width = max(sum(int(documents.lengths[i]) for i in group) for group in groups)
    input_ids = np.full((len(groups), width), pad_id, np.int64)
    position_ids = np.zeros((len(groups), width), np.int64)
    loss_mask = np.zeros((len(groups), width), np.bool_)
    targets: list[int] = []
    owners: list[int] = []
    for row, group in enumerate(groups):
        start = 0
        for index in group:
            document = documents[index]
            stop = start + document.num_tokens
            input_ids[row, start:stop] = document.input_ids
            loss_mask[row, start:stop] = document.loss_mask
            loss_mask[row, start] = False  # the token before it belongs to another document
            position_ids[row, start:] = np.arange(width - start)
            owners.append(index)
            targets.append(int(loss_mask[row, start:stop].sum()))
            start = stop
    document_ids = np.repeat(np.array(owners, np.int64), targets)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        loss_mask=torch.from_numpy(loss_mask),
        domain_ids=torch.from_numpy(documents.domain_ids[document_ids].astype(np.int64)),
        document_ids=torch.from_numpy(document_ids),
        packed=any(len(group) > 1 for group in groups),
    )
