"""How far a student is from its teacher on held-out documents: KL and top-1 agreement per domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from stillhouse.data.document import DocumentSet
from stillhouse.errors import DataError
from stillhouse.evaluation.nll import macro_average
from stillhouse.evaluation.sums import GroupSums, rank_batches
from stillhouse.evaluation.token_nll import chunk_logits, chunk_slices, slice_vocabulary
from stillhouse.rollout.mode import evaluating
from stillhouse.teachers.protocol import Projection, Teacher

if TYPE_CHECKING:
    from stillhouse.models.head import CausalParts


@dataclass(frozen=True)
class DomainAgreement:
    """``forward_kl``: mean KL(teacher || student) in nats per content token; ``top1``: share of equal argmax."""

    forward_kl: float
    top1: float
    content_tokens: int


@dataclass(frozen=True)
class AgreementReport:
    """All domains that have content tokens, and the unweighted means over them."""

    forward_kl: float
    top1: float
    domains: dict[str, DomainAgreement]


@torch.no_grad()
def token_agreement(student: Projection, teacher: Projection, *, chunk: int) -> tuple[Tensor, Tensor]:
    """Return (KL(teacher || student) in nats, whether both put the same id first), float32 [N] each.

    KL = sum_i p_i (log p_i - log q_i) at temperature 1 in float32, 0 where p_i = 0. The student's
    head may have padding rows beyond the teacher's V* real ones; they are cut before the softmax.
    Logits exist ``chunk`` positions at a time.
    """
    student = slice_vocabulary(student, teacher.weight.shape[0])
    kl = torch.empty(student.hidden.shape[0], dtype=torch.float32, device=student.hidden.device)
    same = torch.empty_like(kl)
    for rows in chunk_slices(kl.shape[0], chunk):
        teacher_log_probs = chunk_logits(teacher, rows).log_softmax(-1)
        student_log_probs = chunk_logits(student, rows).log_softmax(-1)
        probs = teacher_log_probs.exp()
        terms = torch.where(probs > 0, probs * (teacher_log_probs - student_log_probs), 0.0)
        kl[rows] = terms.sum(-1)
        same[rows] = (teacher_log_probs.argmax(-1) == student_log_probs.argmax(-1)).float()
    return kl, same


@torch.no_grad()
def evaluate_agreement(
    student: CausalParts,
    teacher: Teacher,
    documents: DocumentSet,
    *,
    end_of_turn_ids: frozenset[int],
    micro_batch_tokens: int,
    head_chunk: int,
    device: torch.device | str,
    process_group: dist.ProcessGroup | None = None,
) -> AgreementReport:
    """Compare student and teacher on the content tokens of ``documents``, shared out over the ranks.

    Raises DataError if no document has a content token.
    """
    ends = torch.tensor(sorted(end_of_turn_ids), dtype=torch.long)
    sums = GroupSums(len(documents.domains), 3)
    with evaluating(student.backbone):
        for batch, counts in rank_batches(
            documents, micro_batch_tokens=micro_batch_tokens, process_group=process_group
        ):
            moved = batch.to(device)
            kl, same = token_agreement(
                student.projection(student.hidden(moved)), teacher.targets(moved).projection, chunk=head_chunk
            )
            if counts:
                content = ~torch.isin(batch.labels, ends)
                values = torch.stack([kl, same, torch.ones_like(kl)], dim=1).cpu()
                sums.add(batch.domain_ids[content], values[content])
    sums.reduce(device, process_group)
    return _report(sums.values.tolist(), documents.domains)


def _report(sums: list[list[float]], names: tuple[str, ...]) -> AgreementReport:
    domains = {
        name: DomainAgreement(kl / count, same / count, int(count))
        for name, (kl, same, count) in zip(names, sums, strict=True)
        if count
    }
    forward_kl = macro_average([domain.forward_kl for domain in domains.values()])
    top1 = macro_average([domain.top1 for domain in domains.values()])
    if forward_kl is None or top1 is None:
        raise DataError("the documents have no content tokens to compare teacher and student on")
    return AgreementReport(forward_kl, top1, domains)
