"""The objective between models with different tokenizers, chunk by chunk of token groups.

A group is a stretch of text with student tokens and teacher tokens; each side is merged into one
distribution: that of an *anchor* position times the probabilities c of the group's other tokens.
``bayesian``: the anchor is the last token, so c is what the tokens before it have, by the chain rule.
``observed``: the anchor is the first token, and c is what the later ones have. (TRL reads the latter from
logits that are not shifted, so that row k predicts token k + 1; here every row predicts its own token.)

Gradients, with r = c q the student's merged row, g = dD/dr, A = sum(r g), y_k the token at position k:

    anchor          r_i g_i - A q_i         (the rule of methods.md section 2 for q, with g scaled by c)
    other k         A ([i = y_k] - q_i)     (because r is proportional to q_k(y_k))

Logits exist for one chunk of whole groups at a time: [chunk, V_S] and [chunk, V_T].
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from stillhouse.divergence.cross_tokenizer.merged import MergedDivergence, hybrid, uld
from stillhouse.divergence.head_gradients import (
    HeadGradients,
    add_head_gradients,
    attach_gradients,
    check_heads,
    fill_logits,
    forming_gradients,
    gradient_factors,
    make_sinks,
    real_rows,
)
from stillhouse.divergence.objective import ObjectiveOutput, ObjectiveTerms, summarise
from stillhouse.divergence.rows import LogitTransform, Statistics, softmax_of_shifted
from stillhouse.recipe import CrossTokenizerObjective, GoldMethod
from stillhouse.teachers.protocol import AlignedTargets, Projection

Merge = Literal["bayesian", "observed"]

CPU_TILE_ROWS = 16
"""Rows of float32 logits whose temporaries stay in the cache (3 MiB at 49,152 ids)."""


@dataclass(frozen=True)
class CrossTokenizerTerms(ObjectiveTerms):
    """ce_weight * CE + kd_weight * D(merged teacher, merged student), both at temperature 1.

    CE counts every target of the student, D every group once; both are divided by the student's targets.
    """

    method: MergedDivergence
    merge: Merge

    def __post_init__(self) -> None:
        assert self.divergence is None
        assert self.temperature == 1.0
        assert self.ce_weight > 0 or self.kd_weight > 0

    @classmethod
    def of(cls, config: CrossTokenizerObjective, vocab_size: int) -> CrossTokenizerTerms:
        """Read a recipe's objective; ``vocab_size`` is the student's V*."""
        method = config.method
        bound = (
            hybrid(beta=method.beta, matched_weight=method.matched_weight) if isinstance(method, GoldMethod) else uld
        )
        return cls(*config.weights, None, 1.0, True, vocab_size, bound, config.merge)


def cross_tokenizer_objective(
    student: Projection,
    labels: Tensor,
    targets: AlignedTargets,
    terms: CrossTokenizerTerms,
    *,
    normaliser: float | Tensor,
    chunk: int,
    weight_grad_accumulator: Tensor | None = None,
) -> ObjectiveOutput:
    """Evaluate the objective at the student's N target tokens; the contract of ``fused_objective``.

    labels int64 [N]. A group longer than ``chunk`` tokens of either side is a chunk of its own. ``kd``
    [N] has each group's value at its last token and 0 elsewhere. ``teacher_nll`` [N] likewise has the
    teacher's nats for the group's text, so its mean compares with that of ``ce`` where all text is in
    groups. There is no entropy and no top-1 agreement: the models choose between different tokens.

    Raises ModelError where the student's head has fewer rows than ``terms.vocab_size``.
    """
    check_heads(student, labels, student, terms)
    assert len(targets.student_groups) == len(labels)
    assert len(targets.groups) == len(targets.tokens) == len(targets.projection.hidden)
    sinks = make_sinks(student, weight_grad_accumulator)
    with forming_gradients(student.hidden.device.type):
        run = _Run(
            real_rows(student, terms.vocab_size),
            terms,
            targets,
            gradient_factors(terms, normaliser, student.hidden),
            sinks,
        )
        output = summarise(run.all(labels, chunk), terms, normaliser)
    if not sinks.wanted:
        return output
    weight_is_done = weight_grad_accumulator is not None and sinks.weight is not None
    return replace(output, loss=attach_gradients(output.loss, student, sinks, weight_is_done=weight_is_done))


@dataclass(frozen=True)
class _Rows:
    """Student rows [start, stop) and teacher rows [teacher_start, teacher_stop): whole groups."""

    start: int
    stop: int
    teacher_start: int
    teacher_stop: int


class _Units:
    """Groups, and targets in none, in the order of the student's rows: what is never cut."""

    def __init__(self, student_groups: Tensor, groups: Tensor) -> None:
        """student_groups int64 [N], -1 for none; groups int64 [M]; both ascending (but for -1) on the CPU."""
        num_rows = len(student_groups)
        begins = torch.ones(num_rows, dtype=torch.bool)
        begins[1:] = (student_groups[1:] != student_groups[:-1]) | (student_groups[1:] < 0)
        first = begins.nonzero().squeeze(1)
        of_unit = student_groups[first]
        counts = torch.bincount(groups, minlength=int(of_unit.max()) + 1 if len(first) else 0)
        assert len(counts) == int((of_unit >= 0).sum()), "a group has tokens on one side only, or is cut in two"
        teacher_counts = torch.where(of_unit >= 0, torch.cat([counts, counts.new_zeros(1)])[of_unit], 0)
        self._rows: list[int] = [*first.tolist(), num_rows]
        self._teacher_rows: list[int] = [0, *teacher_counts.cumsum(0).tolist()]

    def cut(self, limit: int, within: _Rows | None = None) -> Iterator[_Rows]:
        """Yield stretches of whole units with at most ``limit`` rows of either side (a longer unit stands alone)."""
        unit = 0 if within is None else bisect_right(self._rows, within.start) - 1
        last = len(self._rows) - 1 if within is None else bisect_right(self._rows, within.stop) - 1
        while unit < last:
            start, teacher_start = self._rows[unit], self._teacher_rows[unit]
            fits = bisect_right(self._rows, start + limit) - 1
            teacher_fits = bisect_right(self._teacher_rows, teacher_start + limit) - 1
            stop = min(max(unit + 1, min(fits, teacher_fits)), last)
            yield _Rows(start, self._rows[stop], teacher_start, self._teacher_rows[stop])
            unit = stop


@dataclass(frozen=True)
class _Side:
    """One model's rows in a tile: their softmax [n, V], the log-probability of each token [n], its groups [n].

    ``anchors`` int64 [G]: the row of each group's anchor. ``merged`` [G, V].
    """

    prob: Tensor
    own: Tensor
    groups: Tensor
    anchors: Tensor
    merged: Tensor

    @classmethod
    def of(cls, z: Tensor, tokens: Tensor, groups: Tensor, num_groups: int, merge: Merge) -> _Side:
        """z [n, V] final logits; groups int64 [n], from 0 in this tile, -1 for none."""
        softmax = softmax_of_shifted(z - z.amax(-1, keepdim=True)) if len(z) else softmax_of_shifted(z)
        own = softmax.log.gather(1, tokens[:, None]).squeeze(1)
        inside = (groups >= 0).nonzero().squeeze(1)
        change = torch.ones_like(inside, dtype=torch.bool)
        of_row = groups[inside]
        if merge == "bayesian":
            change[:-1] = of_row[1:] != of_row[:-1]
        else:
            change[1:] = of_row[1:] != of_row[:-1]
        anchors, others = inside[change], inside[~change]
        log_others = own.new_zeros(num_groups).index_add_(0, groups[others], own[others])
        merged = softmax.prob[anchors] * log_others.exp()[:, None]
        return cls(softmax.prob, own, groups, anchors, merged)


class _Run:
    """One evaluation: both heads over chunks of groups, the student's gradients into ``sinks``."""

    def __init__(
        self,
        head: Projection,
        terms: CrossTokenizerTerms,
        targets: AlignedTargets,
        factors: Tensor,
        sinks: HeadGradients,
    ) -> None:
        self._head, self._terms, self._targets, self._sinks = head, terms, targets, sinks
        self._teacher = replace(targets.projection, weight=targets.projection.weight.detach())
        self._transform = LogitTransform(head.scale, head.softcap)
        self._teacher_transform = LogitTransform(self._teacher.scale, self._teacher.softcap)
        _, self._ce_factor, self._kd_factor = factors.unbind()

    def all(self, labels: Tensor, chunk: int) -> Statistics:
        """Return the statistics of all targets, each [N]."""
        targets = self._targets
        units = _Units(targets.student_groups.cpu(), targets.groups.cpu())
        chunks = list(units.cut(chunk))
        longest = max((rows.stop - rows.start for rows in chunks), default=0)
        teacher_longest = max((rows.teacher_stop - rows.teacher_start for rows in chunks), default=0)
        buffer = self._head.hidden.new_empty(longest, self._terms.vocab_size)
        teacher_buffer = self._teacher.hidden.new_empty(teacher_longest, len(self._teacher.weight))
        tile = CPU_TILE_ROWS if labels.device.type == "cpu" else chunk
        names = ("ce", "kd", "teacher_nll", "ce_square", "kd_square")
        statistics = {name: self._ce_factor.new_zeros(len(labels)) for name in names}
        for rows in chunks:
            raw = fill_logits(self._head, rows.start, rows.stop, buffer)
            teacher_raw = fill_logits(self._teacher, rows.teacher_start, rows.teacher_stop, teacher_buffer)
            for part in units.cut(tile, rows):
                here = slice(part.start, part.stop)
                found = self._tile(
                    part,
                    labels[here],
                    raw[part.start - rows.start : part.stop - rows.start],
                    teacher_raw[part.teacher_start - rows.teacher_start : part.teacher_stop - rows.teacher_start],
                )
                for name, values in found.items():
                    statistics[name][here] = values
            add_head_gradients(raw, self._head, rows.start, rows.stop, self._sinks)
        return statistics

    def _tile(self, rows: _Rows, labels: Tensor, raw: Tensor, teacher_raw: Tensor) -> Statistics:
        """Statistics of a few groups; ``raw`` [n, V_S] becomes the gradient at the student's raw logits."""
        here, there = slice(rows.start, rows.stop), slice(rows.teacher_start, rows.teacher_stop)
        groups, teacher_groups = self._targets.student_groups[here], self._targets.groups[there]
        first = int(teacher_groups[0]) if len(teacher_groups) else 0
        num_groups = int(teacher_groups[-1]) - first + 1 if len(teacher_groups) else 0
        groups = torch.where(groups >= 0, groups - first, groups)
        z = self._transform.apply(raw, self._head.bias)
        student = _Side.of(z, labels, groups, num_groups, self._terms.merge)
        y = self._teacher_transform.apply(teacher_raw, self._teacher.bias).to(z.dtype)
        teacher = _Side.of(y, self._targets.tokens[there], teacher_groups - first, num_groups, self._terms.merge)
        value, slope = self._terms.method(student.merged, teacher.merged, self._targets.match)
        of_group = -student.own.new_zeros(num_groups).index_add_(0, teacher.groups, teacher.own)
        kd = _kd_gradient(student, student.merged * slope, labels)
        ce = student.prob.scatter_add(1, labels[:, None], torch.full_like(student.own, -1.0)[:, None])
        if self._sinks.wanted:
            gradient = ce * self._ce_factor + kd * self._kd_factor
            raw.copy_(self._transform.backward(gradient, z))
        last = _last_rows(groups)
        return {
            "ce": -student.own,
            "kd": torch.zeros_like(student.own).index_copy_(0, last, value),
            "teacher_nll": torch.zeros_like(student.own).index_copy_(0, last, of_group),
            "ce_square": ce.square().sum(-1),
            "kd_square": kd.square().sum(-1),
        }


def _last_rows(groups: Tensor) -> Tensor:
    """The last row of each group, int64 [G]."""
    ends = torch.ones_like(groups, dtype=torch.bool)
    ends[:-1] = groups[1:] != groups[:-1]
    return (ends & (groups >= 0)).nonzero().squeeze(1)


def _kd_gradient(student: _Side, at_merged: Tensor, labels: Tensor) -> Tensor:
    """dD/dz [n, V] from r * dD/dr [G, V]; 0 in rows without a group."""
    totals = at_merged.sum(-1)
    inside = student.groups >= 0
    of_row = torch.zeros_like(student.own)
    of_row[inside] = totals[student.groups[inside]]
    gradient = student.prob * -of_row[:, None]
    gradient[student.anchors] += at_merged
    of_row[student.anchors] = 0.0
    return gradient.scatter_add_(1, labels[:, None], of_row[:, None])
