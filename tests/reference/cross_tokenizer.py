"""ULD and GOLD with whole distributions in memory, group by group in plain loops, differentiated by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

Groups = list[tuple[list[int], list[int]]]
"""(rows of the student, rows of the teacher) of each group."""


def align_by_walking(student_ends: list[int], teacher_ends: list[int]) -> Groups:
    """Advance the side that ends earlier; close a group when both ends coincide."""
    groups: Groups = []
    ours: list[int] = []
    theirs: list[int] = []
    i = j = 0
    while i < len(student_ends) and j < len(teacher_ends):
        if student_ends[i] == teacher_ends[j]:
            groups.append(([*ours, i], [*theirs, j]))
            ours, theirs = [], []
            i, j = i + 1, j + 1
        elif student_ends[i] < teacher_ends[j]:
            ours.append(i)
            i += 1
        else:
            theirs.append(j)
            j += 1
    return groups


def merged(prob: Tensor, tokens: Tensor, rows: list[int], merge: str) -> Tensor:
    """One distribution [V] for a group, from ``prob`` [n, V] where row k predicts token k."""
    anchor = rows[-1] if merge == "bayesian" else rows[0]
    result = prob[anchor]
    for row in rows:
        if row != anchor:
            result = result * prob[row, tokens[row]]
    return result


def uld(q: Tensor, p: Tensor) -> Tensor:
    size = max(len(q), len(p))
    padded = [torch.cat([x, x.new_zeros(size - len(x))]).sort(descending=True).values for x in (q, p)]
    return (padded[0] - padded[1]).abs().sum()


def gold(q: Tensor, p: Tensor, pairs: dict[int, int], beta: float = 0.5, weight: float | None = None) -> Tensor:
    """``pairs`` maps teacher ids to student ids."""
    jsd = q.new_zeros(())
    for teacher_id, student_id in pairs.items():
        a, b = p[teacher_id].clamp_min(1e-8), q[student_id].clamp_min(1e-8)
        if beta == 0:
            jsd = jsd + a * (a / b).log()
        elif beta == 1:
            jsd = jsd + b * (b / a).log()
        else:
            m = beta * a + (1 - beta) * b
            jsd = jsd + beta * a * (a / m).log() + (1 - beta) * b * (b / m).log()
    rest_q = q[[i for i in range(len(q)) if i not in pairs.values()]]
    rest_p = p[[i for i in range(len(p)) if i not in pairs]]
    w = len(pairs) / len(p) if weight is None else weight
    return w * jsd + (1 - w) * uld(rest_q, rest_p)


def loss_of(
    z: Tensor,
    y: Tensor,
    labels: Tensor,
    tokens: Tensor,
    groups: Groups,
    *,
    merge: str,
    ce_weight: float,
    kd_weight: float,
    pairs: dict[int, int] | None,
    beta: float = 0.5,
    weight: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of CE, values per group, weighted sum of both) from logits z [N, V_S] and y [M, V_T]; ``pairs`` None: ULD."""
    q, p = z.softmax(-1), y.softmax(-1)
    ce = -z.log_softmax(-1).gather(1, labels[:, None]).sum()
    values = []
    for ours, theirs in groups:
        r, s = merged(q, labels, ours, merge), merged(p, tokens, theirs, merge)
        values.append(uld(r, s) if pairs is None else gold(r, s, pairs, beta, weight))
    kd = torch.stack(values) if values else z.new_zeros(0)
    return ce, kd, ce_weight * ce + kd_weight * kd.sum()
