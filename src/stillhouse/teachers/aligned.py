"""A teacher with another tokenizer, in this process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from stillhouse.data.batch import Batch
from stillhouse.data.batching import collate_padded
from stillhouse.data.document import Int64Array
from stillhouse.divergence.cross_tokenizer.alignment import UNGROUPED
from stillhouse.divergence.cross_tokenizer.merged import VocabularyMatch
from stillhouse.errors import ModelError
from stillhouse.models.head import split_model
from stillhouse.models.token_bytes import matching_ids
from stillhouse.models.tokenizers import vocabulary_size
from stillhouse.teachers.aligned_documents import AlignedDocuments
from stillhouse.teachers.batch_order import documents_in_order
from stillhouse.teachers.protocol import AlignedTargets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class AlignedTeacher:
    """A frozen model that reads the same documents in its own tokens.

    ``documents``: the teacher's renderings of the set that batches are cut from, with the groups. The
    model must be in its place already; it is frozen here. Raises ModelError when its head has fewer rows
    than its tokenizer has ids.
    """

    def __init__(self, model: PreTrainedModel, documents: AlignedDocuments, match: VocabularyMatch) -> None:
        model.train(False)
        self.model = model.requires_grad_(False)
        self.documents = documents
        self._num_parameters = int(model.num_parameters())
        self._parts = split_model(model)
        self._vocab_size = len(match.teacher_ids) + len(match.teacher_rest)
        head = self._parts.head
        if head.weight.shape[0] < self._vocab_size:
            raise ModelError(
                f"teacher.path: its head has {head.weight.shape[0]} rows and its tokenizer {self._vocab_size} ids; "
                "the tokenizer does not belong to this model"
            )
        self._match = match.to(head.weight.device)
        self._student_offsets = _offsets(documents.student_targets)
        self._teacher_offsets = _offsets(documents.teacher.num_targets)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, tied ones once."""
        return self._num_parameters

    @torch.no_grad()
    def targets(self, batch: Batch) -> AlignedTargets:
        """Return what the teacher says about the documents of ``batch``, on the batch's device.

        The teacher runs once in each call, whatever the batch holds, so that ranks with sharded teachers
        stay together.
        """
        device = batch.input_ids.device
        own = documents_in_order(batch.document_ids.cpu().numpy(), self.documents.student_targets)
        asked = own[self.documents.num_groups[own] > 0]
        if len(asked):
            teacher_batch = collate_padded(self.documents.teacher, asked.tolist(), pad_id=0)
        else:
            teacher_batch = collate_padded(self.documents.teacher, [0], pad_id=0).without_targets()
        teacher_batch = teacher_batch.to(device)
        projection = self._parts.projection(self._parts.hidden(teacher_batch))
        bias = None if projection.bias is None else projection.bias.detach()[: self._vocab_size]
        return AlignedTargets(
            projection=replace(projection, weight=projection.weight.detach()[: self._vocab_size], bias=bias),
            tokens=teacher_batch.labels,
            groups=self._groups(self.documents.teacher_groups, self._teacher_offsets, own).to(device),
            student_groups=self._groups(self.documents.student_groups, self._student_offsets, own).to(device),
            match=self._match,
        )

    def _groups(self, groups: Int64Array, offsets: Int64Array, own: Int64Array) -> torch.Tensor:
        """Join the groups of documents, each numbered after the one before."""
        parts = [np.zeros(0, np.int64)]
        number = 0
        for index in own.tolist():
            part = groups[offsets[index] : offsets[index + 1]]
            parts.append(np.where(part == UNGROUPED, UNGROUPED, part + number))
            number += int(self.documents.num_groups[index])
        return torch.from_numpy(np.concatenate(parts))


def vocabulary_match(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> VocabularyMatch:
    """Return which ids of two tokenizers write the same bytes. Raises ModelError as ``token_bytes`` does."""
    ours, theirs = matching_ids(student, teacher)
    pairs = torch.tensor(ours, dtype=torch.int64), torch.tensor(theirs, dtype=torch.int64)
    return VocabularyMatch.of(*pairs, vocabulary_size(student), vocabulary_size(teacher))


def _offsets(counts: Int64Array) -> Int64Array:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
