"""Cross-entropy whose tokens count by their domain, as DoReMi's proxy is trained (arXiv 2305.10429)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.objective import ObjectiveOutput, ObjectiveTerms
from stillhouse.teachers.protocol import Projection


def domain_weighted_objective(
    student: Projection,
    labels: Tensor,
    domain_ids: Tensor,
    token_weights: Sequence[float],
    terms: ObjectiveTerms,
    *,
    normaliser: float,
    chunk: int,
    compiled: bool,
    weight_grad_accumulator: Tensor | None = None,
) -> ObjectiveOutput:
    """Sum over tokens of w_domain * CE, divided by ``normaliser``: the sum of w_domain over the whole optimizer step.

    labels, domain_ids int64 [N]; ``token_weights``: one number for each domain, not negative. A domain
    is a call of :func:`fused_objective` with the normaliser divided by its weight, so the logits of a
    chunk are all that is ever held. The other arguments and the errors are those of that function.
    The output's ``ce`` [N] is not weighted.
    """
    assert terms.kd_weight == 0, "a proxy has no divergence"
    common = {"chunk": chunk, "compiled": compiled, "weight_grad_accumulator": weight_grad_accumulator}
    ce = torch.zeros(len(labels), dtype=torch.float32, device=labels.device)
    # Batches without targets need a graph too: under FSDP2 every rank takes part in the backward pass.
    empty = replace(student, hidden=student.hidden[:0])
    total = fused_objective(empty, labels[:0], None, terms, normaliser=normaliser, **common)  # type: ignore[arg-type]
    loss, square = total.loss, total.ce_grad_square
    for domain in torch.unique(domain_ids).tolist():
        weight = float(token_weights[domain])
        rows = torch.nonzero(domain_ids == domain).squeeze(1)
        part = replace(student, hidden=student.hidden[rows])
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
            found = fused_objective(
                part,
                labels[rows],
                None,
                terms,
                normaliser=normaliser / weight if weight > 0 else 1.0,
                **common,  # type: ignore[arg-type]
            )
        ce[rows] = found.ce.to(ce.dtype)
        if weight > 0:
            loss, square = loss + found.loss, square + weight**2 * found.ce_grad_square
    return replace(total, loss=loss, ce=ce, ce_grad_square=square)
