"""Teacher and untrained student on the user's own held-out rows, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stillhouse.errors import DataError
from stillhouse.evaluation.agreement import token_agreement
from stillhouse.evaluation.sums import GroupSums, rank_batches
from stillhouse.evaluation.token_nll import chunk_logits, chunk_slices, token_nll
from stillhouse.rollout.mode import evaluating
from stillhouse.study.adviser.evidence import DomainMeasurement, Measurement

if TYPE_CHECKING:
    from stillhouse.data.document import DocumentSet
    from stillhouse.models.head import CausalParts
    from stillhouse.teachers.live import LiveTeacher
    from stillhouse.teachers.protocol import Projection

_HEAD_CHUNK = 512


@torch.no_grad()
def teacher_confidence(teacher: Projection, labels: Tensor, *, chunk: int) -> tuple[Tensor, Tensor]:
    """Return (whether the teacher puts the gold id first, its entropy in nats), float32 [N] each.

    labels int64 [N]. Logits exist ``chunk`` positions at a time.
    """
    correct = torch.empty(labels.shape[0], dtype=torch.float32, device=teacher.hidden.device)
    entropy = torch.empty_like(correct)
    for rows in chunk_slices(labels.shape[0], chunk):
        log_probs = chunk_logits(teacher, rows).log_softmax(-1)
        correct[rows] = (log_probs.argmax(-1) == labels[rows]).float()
        probs = log_probs.exp()
        entropy[rows] = -torch.where(probs > 0, probs * log_probs, 0.0).sum(-1)
    return correct, entropy


@torch.no_grad()
def measure_pair(
    student: CausalParts,
    teacher: LiveTeacher,
    documents: DocumentSet,
    *,
    end_of_turn_ids: frozenset[int],
    micro_batch_tokens: int,
    device: torch.device | str,
) -> Measurement:
    """Score both models on the content tokens of ``documents``, each of which is read once by each model.

    Raises DataError if no document has a content token.
    """
    ends = torch.tensor(sorted(end_of_turn_ids), dtype=torch.long)
    sums = GroupSums(len(documents.domains), 7)
    with evaluating(student.backbone):
        for batch, counts in rank_batches(documents, micro_batch_tokens=micro_batch_tokens, process_group=None):
            assert counts, "one process reads every batch"
            moved = batch.to(device)
            target = teacher.targets(moved).projection
            own = student.projection(student.hidden(moved))
            vocab_size = target.weight.shape[0]
            columns = [
                token_nll(target, moved.labels, vocab_size=None, chunk=_HEAD_CHUNK),
                token_nll(own, moved.labels, vocab_size=vocab_size, chunk=_HEAD_CHUNK),
                *teacher_confidence(target, moved.labels, chunk=_HEAD_CHUNK),
                *reversed(token_agreement(own, target, chunk=_HEAD_CHUNK)),
            ]
            values = torch.stack([*columns, torch.ones_like(columns[0])], dim=1).cpu()
            content = ~torch.isin(batch.labels, ends)
            sums.add(batch.domain_ids[content], values[content])
    return _measurement(sums.values.tolist(), documents.domains)


def _measurement(sums: Sequence[Sequence[float]], names: Sequence[str]) -> Measurement:
    domains = {
        name: DomainMeasurement(
            teacher_nll=values[0] / count,
            student_nll=values[1] / count,
            teacher_accuracy=values[2] / count,
            teacher_entropy=values[3] / count,
            agreement=values[4] / count,
            forward_kl=values[5] / count,
            content_tokens=int(count),
        )
        for name, (*values, count) in zip(names, sums, strict=True)
        if count
    }
    if not domains:
        raise DataError("the held-out documents have no content tokens to measure teacher and student on")
    return Measurement(domains)
