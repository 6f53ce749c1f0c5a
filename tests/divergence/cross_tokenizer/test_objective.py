"""The chunked objective against whole distributions in float64, and its contracts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference import cross_tokenizer as reference
from reference.fused_cases import make_projection
from reference.objective import logits_of
from stillhouse.divergence.cross_tokenizer.merged import VocabularyMatch, hybrid, uld
from stillhouse.divergence.cross_tokenizer.objective import (
    CrossTokenizerTerms,
    Merge,
    _Units,
    cross_tokenizer_objective,
)
from stillhouse.divergence.objective import ObjectiveOutput
from stillhouse.teachers.protocol import AlignedTargets, Projection

STUDENT_VOCAB, TEACHER_VOCAB = 11, 15
PAIRS = {4: 0, 2: 5, 14: 9}
MATCH = VocabularyMatch.of(torch.tensor([0, 5, 9]), torch.tensor([4, 2, 14]), STUDENT_VOCAB, TEACHER_VOCAB)
# Three targets are in no group; groups of 1-1, 2-1, 1-3, 2-2 and 4-1 tokens.
GROUPS: reference.Groups = [([1], [0]), ([2, 3], [1]), ([5], [2, 3, 4]), ([6, 7], [5, 6]), ([8, 9, 10, 11], [7])]
STUDENT_GROUPS = torch.tensor([-1, 0, 1, 1, -1, 2, 3, 3, 4, 4, 4, 4, -1])
TEACHER_GROUPS = torch.tensor([0, 1, 2, 2, 2, 3, 3, 4])


def terms(method: str, merge: Merge, ce_weight: float = 0.6, kd_weight: float = 1.3) -> CrossTokenizerTerms:
    return CrossTokenizerTerms(
        ce_weight=ce_weight,
        kd_weight=kd_weight,
        divergence=None,
        temperature=1.0,
        scale_t2=True,
        vocab_size=STUDENT_VOCAB,
        method=uld if method == "uld" else hybrid(beta=0.5, matched_weight=None),
        merge=merge,
    )


def labels_and_tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randint(STUDENT_VOCAB, (len(STUDENT_GROUPS),), generator=generator),
        torch.randint(TEACHER_VOCAB, (len(TEACHER_GROUPS),), generator=generator),
    )


def world(dtype: torch.dtype = torch.float64, **student: object) -> tuple[Projection, Tensor, AlignedTargets]:
    labels, tokens = labels_and_tokens()
    ours = make_projection(1, len(labels), 5, rows=STUDENT_VOCAB + 2, dtype=dtype, **student)  # type: ignore[arg-type]
    theirs = make_projection(2, len(tokens), 7, rows=TEACHER_VOCAB, dtype=dtype, softcap=6.0)
    return ours, labels, AlignedTargets(theirs, tokens, TEACHER_GROUPS, STUDENT_GROUPS, MATCH)


def evaluate(student: Projection, labels: Tensor, targets: AlignedTargets, **kw: object) -> ObjectiveOutput:
    arguments = {"terms": terms("gold", "bayesian"), "normaliser": 7.0, "chunk": 16, **kw}
    return cross_tokenizer_objective(student, labels, targets, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [1, 3, 5, 100])
@pytest.mark.parametrize("merge", ["bayesian", "observed"])
@pytest.mark.parametrize("method", ["uld", "gold"])
def test_loss_and_every_gradient_agree_with_autograd(method: str, merge: Merge, chunk: int) -> None:
    student, labels, targets = world(bias=True, scale=0.8, softcap=5.0)
    leaves = [student.hidden, student.weight, student.bias]
    z = logits_of(student)[:, :STUDENT_VOCAB]
    chosen = terms(method, merge)
    ce, kd, total = reference.loss_of(
        z,
        logits_of(targets.projection).detach(),
        labels,
        targets.tokens,
        GROUPS,
        merge=merge,
        ce_weight=chosen.ce_weight,
        kd_weight=chosen.kd_weight,
        pairs=None if method == "uld" else PAIRS,
    )
    expected = torch.autograd.grad(total / 7.0, leaves, retain_graph=True)  # type: ignore[arg-type]
    (kd_at_logits,) = torch.autograd.grad(chosen.kd_weight * kd.sum(), z)
    output = evaluate(student, labels, targets, terms=chosen, chunk=chunk)
    output.loss.backward()  # type: ignore[no-untyped-call]
    close = {"rtol": 1e-10, "atol": 1e-13}
    torch.testing.assert_close(output.loss.detach(), (total / 7.0).detach(), **close)
    torch.testing.assert_close(output.ce.sum(), ce.detach(), **close)
    assert output.kd is not None
    last = torch.tensor([ours[-1] for ours, _ in GROUPS])
    torch.testing.assert_close(output.kd[last], kd.detach(), **close)
    assert int((output.kd != 0).sum()) == len(GROUPS)
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert leaf is not None
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, gradient, **close)
    torch.testing.assert_close(output.kd_grad_square, kd_at_logits.square().sum(), **close)


def test_what_the_teacher_gives_the_text_of_each_group() -> None:
    student, labels, targets = world()
    output = evaluate(student, labels, targets)
    log_p = logits_of(targets.projection).detach().log_softmax(-1)
    assert output.teacher_nll is not None
    for ours, theirs in GROUPS:
        nats = -sum(float(log_p[row, targets.tokens[row]]) for row in theirs)
        assert float(output.teacher_nll[ours[-1]]) == pytest.approx(nats, rel=1e-12)
    assert output.top1_agreement is None
    assert output.teacher_entropy is None


def test_float32_and_bfloat16_stay_near_float64() -> None:
    exact = evaluate(*world())
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        student, labels, targets = world(dtype)
        output = evaluate(student, labels, targets)
        torch.testing.assert_close(output.loss.double(), exact.loss, rtol=tolerance, atol=tolerance)
        output.loss.backward()  # type: ignore[no-untyped-call]
        assert student.weight.grad is not None
        assert student.weight.grad.dtype == dtype


def test_one_token_a_group_with_uld_is_the_published_number() -> None:
    # q = (.7, .2, .1), p = (.5, .3, .15, .05), label 0: CE .356675 + 1.5 * .4 = .956675
    q, p = torch.tensor([[0.7, 0.2, 0.1]]).double(), torch.tensor([[0.5, 0.3, 0.15, 0.05]]).double()
    student = Projection(q.log(), torch.eye(3).double())
    teacher = Projection(p.log(), torch.eye(4).double())
    match = VocabularyMatch.of(torch.tensor([0]), torch.tensor([0]), 3, 4)
    zero = torch.zeros(1, dtype=torch.int64)
    chosen = CrossTokenizerTerms(1.0, 1.5, None, 1.0, True, 3, uld, "bayesian")
    output = cross_tokenizer_objective(
        student, zero, AlignedTargets(teacher, zero, zero, zero, match), chosen, normaliser=1.0, chunk=4
    )
    assert output.loss.item() == pytest.approx(0.956675, abs=1e-6)


def test_micro_batches_add_up_and_an_accumulator_is_added_to() -> None:
    student, labels, targets = world()
    whole = evaluate(student, labels, targets)
    whole.loss.backward()  # type: ignore[no-untyped-call]
    accumulator = torch.zeros_like(student.weight)
    # Cut after the fourth group: rows 0-7 and teacher rows 0-6, then the rest with groups from 0 again.
    for rows, teacher_rows, first in ((slice(0, 8), slice(0, 7), 0), (slice(8, 13), slice(7, 8), 4)):
        part = Projection(student.hidden.detach()[rows].requires_grad_(), student.weight)
        theirs = Projection(targets.projection.hidden[teacher_rows], targets.projection.weight, softcap=6.0)
        groups = torch.where(STUDENT_GROUPS[rows] >= 0, STUDENT_GROUPS[rows] - first, -1)
        aligned = AlignedTargets(
            theirs, targets.tokens[teacher_rows], TEACHER_GROUPS[teacher_rows] - first, groups, MATCH
        )
        output = evaluate(part, labels[rows], aligned, weight_grad_accumulator=accumulator)
        output.loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(accumulator, student.weight.grad)


def test_without_targets_or_groups_there_is_a_graph_and_no_divergence() -> None:
    student, labels, targets = world()
    none = torch.zeros(0, dtype=torch.int64)
    nobody = Projection(targets.projection.hidden[:0], targets.projection.weight)
    alone = evaluate(student, labels, AlignedTargets(nobody, none, none, torch.full_like(labels, -1), MATCH))
    assert alone.kd is not None
    assert alone.kd.abs().sum() == 0
    assert alone.loss.item() == pytest.approx(0.6 * float(alone.ce.sum()) / 7.0)
    empty = Projection(student.hidden[:0], student.weight)
    output = evaluate(empty, none, AlignedTargets(nobody, none, none, none, MATCH))
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert output.loss.item() == 0.0
    with torch.no_grad():
        assert not evaluate(student, labels, targets).loss.requires_grad


def test_groups_are_never_cut() -> None:
    units = _Units(STUDENT_GROUPS, TEACHER_GROUPS)
    for limit in (1, 2, 3, 5, 50):
        pieces = list(units.cut(limit))
        assert [p.start for p in pieces[1:]] == [p.stop for p in pieces[:-1]]
        assert (pieces[0].start, pieces[-1].stop) == (0, len(STUDENT_GROUPS))
        assert (pieces[0].teacher_start, pieces[-1].teacher_stop) == (0, len(TEACHER_GROUPS))
        for piece in pieces:
            ours = set(STUDENT_GROUPS[piece.start : piece.stop].tolist()) - {-1}
            theirs = set(TEACHER_GROUPS[piece.teacher_start : piece.teacher_stop].tolist())
            assert ours == theirs
            inner = list(units.cut(1, piece))
            assert (inner[0].start, inner[-1].stop) == (piece.start, piece.stop)
