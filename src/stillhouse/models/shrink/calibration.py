"""Measurements on calibration documents, one document per forward pass so that no padding is averaged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.data.batch import Batch
from stillhouse.data.document import DocumentSet, Int64Array
from stillhouse.errors import ModelError
from stillhouse.models.head import apply_head
from stillhouse.randomness import numpy_generator
from stillhouse.teachers.protocol import Projection

HEAD_CHUNK = 512


def calibration_set(documents: DocumentSet, count: int, *, seed: int) -> DocumentSet:
    """Draw ``count`` documents that have targets (or all, if fewer), evenly over the domains.

    Raises ModelError when no document has a target.
    """
    usable = np.flatnonzero(documents.num_targets > 0)
    if len(usable) == 0:
        raise ModelError("student: no training document has a target, so nothing can be measured for pruning")
    shuffled = numpy_generator(seed, "calibration").permutation(usable)
    turn = _turn_within_domain(documents.domain_ids[shuffled].astype(np.int64))
    return documents.select(np.sort(shuffled[np.argsort(turn, kind="stable")][:count]))


def _turn_within_domain(domain_ids: Int64Array) -> Int64Array:
    """For each document, how many of its domain come before it."""
    turns = np.zeros_like(domain_ids)
    for domain in np.unique(domain_ids):
        members = domain_ids == domain
        turns[members] = np.arange(members.sum())
    return turns


def document_batches(documents: DocumentSet, device: torch.device) -> Iterator[Batch]:
    """Yield each document as a batch of one row, [1, T], without padding."""
    for index, document in enumerate(documents):
        targets = torch.zeros(document.num_targets, dtype=torch.int64)
        yield Batch(
            input_ids=torch.from_numpy(document.input_ids.astype(np.int64))[None],
            position_ids=torch.arange(document.num_tokens)[None],
            loss_mask=torch.from_numpy(document.loss_mask.copy())[None],
            domain_ids=targets + document.domain,
            document_ids=targets + index,
        ).to(device)


def nll_sum(projection: Projection, labels: Tensor) -> float:
    """Return the sum over N targets of -log p(label), in nats; logits exist one chunk at a time.

    labels int64 [N]; logits are taken to float32.
    """
    total = 0.0
    for start in range(0, len(labels), HEAD_CHUNK):
        rows = slice(start, start + HEAD_CHUNK)
        chunk = Projection(
            projection.hidden[rows], projection.weight, projection.bias, projection.scale, projection.softcap
        )
        total += nn.functional.cross_entropy(apply_head(chunk).float(), labels[rows], reduction="sum").item()
    return total
