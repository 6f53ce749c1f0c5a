"""ULD and GOLD on merged rows: the numbers of methods.md section 8, and gradients against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference import cross_tokenizer as reference
from stillhouse.divergence.cross_tokenizer.merged import MergedDivergence, VocabularyMatch, hybrid, sorted_l1, uld

Q = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
P = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
MATCH = VocabularyMatch.of(torch.tensor([0, 2]), torch.tensor([0, 1]), 3, 4)


def test_uld_sorts_and_pads() -> None:
    # |.7-.5| + |.2-.3| + |.1-.15| + |0-.05| = .4
    value, slope = uld(Q, P, MATCH)
    assert value.item() == pytest.approx(0.4, abs=1e-12)
    assert slope.tolist() == [[1, -1, -1]]


def test_gold_of_matched_and_other_ids() -> None:
    # Teacher 0 -> student 0, 1 -> 2: m = (.6, .2);
    # J = (.5 ln(.5/.6) + .3 ln(.3/.2) + .7 ln(.7/.6) + .1 ln(.1/.2)) / 2 = .034535
    # U = |.2-.15| + |0-.05| = .1; w = 2/4
    half, _ = hybrid(beta=0.5, matched_weight=None)(Q, P, MATCH)
    matched, _ = hybrid(beta=0.5, matched_weight=1.0)(Q, P, MATCH)
    others, _ = hybrid(beta=0.5, matched_weight=0.0)(Q, P, MATCH)
    assert matched.item() == pytest.approx(0.034535, abs=1e-6)
    assert others.item() == pytest.approx(0.1, abs=1e-12)
    assert half.item() == pytest.approx(0.067267, abs=1e-6)


def test_a_vocabulary_is_split_into_pairs_and_others() -> None:
    assert MATCH.student_rest.tolist() == [1]
    assert MATCH.teacher_rest.tolist() == [2, 3]
    assert MATCH.share_of_teacher == 0.5


def rows(seed: int, count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mass = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return mass * (2 * torch.randn(count, size, generator=generator, dtype=torch.float64)).softmax(-1)


@pytest.mark.parametrize(("student_size", "teacher_size"), [(9, 13), (13, 9), (9, 9)])
@pytest.mark.parametrize("method", ["uld", "gold", "gold beta 0", "gold beta 1", "gold weight .8"])
def test_values_and_slopes_agree_with_autograd(student_size: int, teacher_size: int, method: str) -> None:
    pairs = {7: 0, 2: 3, 0: 8}
    match = VocabularyMatch.of(torch.tensor([0, 3, 8]), torch.tensor([7, 2, 0]), student_size, teacher_size)
    beta = {"gold beta 0": 0.0, "gold beta 1": 1.0}.get(method, 0.5)
    weight = 0.8 if method == "gold weight .8" else None
    ours: MergedDivergence = uld if method == "uld" else hybrid(beta=beta, matched_weight=weight)
    r, s = rows(1, 5, student_size).requires_grad_(), rows(2, 5, teacher_size)
    expected = torch.stack(
        [
            reference.uld(a, b) if method == "uld" else reference.gold(a, b, pairs, beta, weight)
            for a, b in zip(r, s, strict=True)
        ]
    )
    (gradient,) = torch.autograd.grad(expected.sum(), r)
    value, slope = ours(r.detach(), s, match)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", [uld, hybrid(beta=0.5, matched_weight=None), hybrid(beta=1, matched_weight=None)])
def test_equal_models_have_no_divergence(method: MergedDivergence) -> None:
    q = rows(3, 4, 6)
    everything = torch.arange(6)
    value, _ = method(q, q.clone(), VocabularyMatch.of(everything, everything, 6, 6))
    torch.testing.assert_close(value, torch.zeros(4, dtype=torch.float64))


def test_the_fast_sort_of_float32_is_the_plain_one() -> None:
    student, teacher = rows(4, 3, 500).float(), rows(5, 3, 700).float()
    student[0, :7] = student[0, 9]  # ties
    student[1, 3] = 0.0
    fast = sorted_l1(student, teacher)
    plain = sorted_l1(student.double(), teacher.double())
    torch.testing.assert_close(fast[0].double(), plain[0], rtol=1e-5, atol=1e-7)
    ties = torch.zeros(3, 500, dtype=torch.bool)
    ties[0, :10] = True
    torch.testing.assert_close(fast[1].double()[~ties], plain[1][~ties])
    torch.testing.assert_close(fast[1].sum(-1).double(), plain[1].sum(-1))


def test_a_matched_probability_below_the_clamp_gets_no_gradient() -> None:
    r = torch.tensor([[1e-9, 0.5]], dtype=torch.float64)
    s = torch.tensor([[0.3, 0.5]], dtype=torch.float64)
    both = torch.arange(2)
    _, slope = hybrid(beta=0.5, matched_weight=1.0)(r, s, VocabularyMatch.of(both, both, 2, 2))
    assert slope[0, 0] == 0
