"""Sparse objectives against float64 autograd on the whole distribution, and methods.md's numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stillhouse.divergence.base import Divergence
from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.jsd import jsd
from stillhouse.divergence.kl import forward_kl, reverse_kl
from stillhouse.divergence.objective import ObjectiveOutput, ObjectiveTerms
from stillhouse.divergence.skewed import skewed_kl
from stillhouse.divergence.sparse import check_sparse_targets, sparse_objective
from stillhouse.divergence.tvd import tvd
from stillhouse.errors import RecipeError
from stillhouse.targets.sparse import PADDING, SparseTargets, Tail
from stillhouse.teachers.protocol import Projection

TEACHER = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
STUDENT = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)


def terms(
    divergence: Divergence | None = None,
    *,
    ce: float = 0.0,
    kd: float = 1.0,
    temperature: float = 1.0,
    scale_t2: bool = True,
    vocab_size: int = 4,
) -> ObjectiveTerms:
    return ObjectiveTerms(ce, kd, divergence or forward_kl(), temperature, scale_t2, vocab_size)


def on_logits(
    z: Tensor, labels: Tensor, targets: SparseTargets, given: ObjectiveTerms
) -> tuple[ObjectiveOutput, Tensor]:
    """The objective with an identity head, so that its hidden states are the logits; output and gradient."""
    hidden = z.clone().requires_grad_()
    head = Projection(hidden, torch.eye(z.shape[1], dtype=z.dtype))
    output = sparse_objective(head, labels, targets, given, normaliser=1.0, chunk=16, compiled=False)
    (gradient,) = torch.autograd.grad(output.loss, hidden)
    return output, gradient


def top_k(p: Tensor, k: int, tail: Tail, temperature: float = 1.0) -> SparseTargets:
    weight, ids = p.topk(min(k, p.shape[1]), dim=1)
    weight = weight / weight.sum(1, keepdim=True) if tail == "renormalised" else weight
    return SparseTargets(ids, weight, tail, "top_k", temperature, p.shape[1])


# --- methods.md section 4 -----------------------------------------------------------------------


@pytest.mark.parametrize("label", [0, 3])  # kept by the teacher, and not
@pytest.mark.parametrize(
    ("tail", "value", "gradient"),
    [
        # a = .643914 + .236883 = .880797; p/a = [.731059, .268941]; grad q - p/a on K, q off K.
        ("renormalised", 0.424206, [-0.365529, 0.096588, 0.134471, 0.134471]),
        # p_r = .119203, q_r = .268941; off K q (1 - p_r/q_r) = .134471 * .556770.
        ("ghost", 0.164850, [-0.278385, 0.128646, 0.074869, 0.074869]),
    ],
)
def test_toy_numbers(tail: Tail, value: float, gradient: list[float], label: int) -> None:
    output, found = on_logits(STUDENT, torch.tensor([label]), top_k(TEACHER.softmax(-1), 2, tail), terms())
    assert output.loss.item() == pytest.approx(value, abs=1e-5)
    torch.testing.assert_close(found, torch.tensor([gradient], dtype=torch.float64), atol=1e-5, rtol=0)


def enumerated(p: list[float], draws: int) -> list[tuple[float, list[float]]]:
    """Every ordered sample of ``draws`` ids: its probability, and the estimate c_i / N."""
    result = []
    for sample in itertools.product(range(len(p)), repeat=draws):
        probability = float(torch.tensor([p[i] for i in sample], dtype=torch.float64).prod())
        result.append((probability, [sample.count(i) / draws for i in range(len(p))]))
    return result


def estimate_targets(estimate: list[float], vocab_size: int) -> SparseTargets:
    listed = [i for i, w in enumerate(estimate) if w > 0]
    weight = torch.tensor([[estimate[i] for i in listed]], dtype=torch.float64)
    return SparseTargets(torch.tensor([listed]), weight, "none", "sampled", 1.0, vocab_size)


def test_sampled_enumeration() -> None:
    """p = [.6,.3,.1], q = [.5,.3,.2], N = 2: E p_hat = p, E gradient = q - p, E KL = .563724."""
    p, q = [0.6, 0.3, 0.1], torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    exact = torch.tensor(p, dtype=torch.float64)
    mean, square = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    gradient_mean = torch.zeros(3, dtype=torch.float64)
    unique = kl = cross_entropy = 0.0
    for probability, estimate in enumerated(p, 2):
        hat = torch.tensor(estimate, dtype=torch.float64)
        output, gradient = on_logits(q.log(), torch.tensor([1]), estimate_targets(estimate, 3), terms(vocab_size=3))
        assert output.kd is not None
        mean += probability * hat
        square += probability * hat**2
        gradient_mean += probability * gradient[0]
        unique += probability * sum(w > 0 for w in estimate)
        cross_entropy += probability * output.kd.item()
        kl += probability * (output.kd.item() + sum(w * torch.tensor(w).log().item() for w in estimate if w > 0))
    torch.testing.assert_close(mean, exact)
    torch.testing.assert_close(square - mean**2, exact * (1 - exact) / 2)  # [.12, .105, .045]
    torch.testing.assert_close(gradient_mean, q[0] - exact)
    assert unique == pytest.approx(1.54)  # sum of 1 - (1 - p)^2 = .84 + .51 + .19
    assert kl == pytest.approx(0.563724, abs=1e-5)
    # -sum p log q is exactly right in expectation, where KL(p_hat || q) is not (.040078).
    assert cross_entropy == pytest.approx(-(exact * q[0].log()).sum().item())


# --- against autograd -------------------------------------------------------------------------


def random_case(
    seed: int, *, n: int = 11, vocab: int = 23, rows: int = 26, softcap: float | None = None, scale: float = 1.0
) -> tuple[Projection, Tensor, Tensor]:
    """A student head with padding rows, labels, and teacher logits [n, vocab], all float64."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 7, generator=g, dtype=torch.float64)
    weight = torch.randn(rows, 7, generator=g, dtype=torch.float64)
    bias = torch.randn(rows, generator=g, dtype=torch.float64)
    labels = torch.randint(0, vocab, (n,), generator=g)
    teacher = torch.randn(n, vocab, generator=g, dtype=torch.float64) * 2
    parts = [t.requires_grad_() for t in (hidden, weight, bias)]
    return Projection(parts[0], parts[1], parts[2], scale, softcap), labels, teacher


def with_padding(targets: SparseTargets, kept: Tensor) -> SparseTargets:
    """Leave only the first ``kept`` [n] slots of each row in use."""
    used = torch.arange(targets.ids.shape[1]) < kept[:, None]
    weight = torch.where(used, targets.weight, 0.0)
    if targets.tail == "renormalised":
        weight = weight / weight.sum(1, keepdim=True)
    return replace(targets, ids=torch.where(used, targets.ids, PADDING), weight=weight)


def reference(
    student: Projection, labels: Tensor, targets: SparseTargets, given: ObjectiveTerms
) -> tuple[Tensor, Tensor]:
    """ce [N] and kd [N] by plain autograd over buckets, row by row."""
    z = student.scale * (student.hidden @ student.weight.T + student.bias)
    z = z if student.softcap is None else student.softcap * torch.tanh(z / student.softcap)
    z = z[:, : given.vocab_size]
    ce = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    q = (z / given.temperature).softmax(-1)
    kd = []
    for row in range(len(labels)):
        kept = targets.ids[row][targets.valid[row]]
        p, inside = targets.weight[row][targets.valid[row]], q[row][kept]
        if targets.tail == "ghost":
            p, inside = torch.cat([p, (1 - p.sum())[None]]), torch.cat([inside, (1 - inside.sum())[None]])
        if targets.kind == "sampled":
            kd.append(-(p * inside.log()).sum())
            continue
        assert given.divergence is not None
        m = 0.5 * (p + inside)
        kd.append(
            {
                "forward_kl": (p * (p / inside).log()).sum(),
                "reverse_kl": (inside * (inside / p).log()).sum(),
                "tvd": 0.5 * (p - inside).abs().sum(),
                "jsd": 0.5 * (p * (p / m).log()).sum() + 0.5 * (inside * (inside / m).log()).sum(),
                "skewed_kl": (p * (p / (0.1 * p + 0.9 * inside)).log()).sum(),
            }[given.divergence.name.split("(")[0]]
        )
    return ce, torch.stack(kd) * given.kd_scale


CASES = [
    pytest.param("renormalised", forward_kl(), id="renormalised"),
    pytest.param("none", forward_kl(), id="sampled"),
    *(
        pytest.param("ghost", d, id=f"ghost-{d.name}")
        for d in (forward_kl(), reverse_kl(), tvd(), jsd(0.5), skewed_kl(0.1))
    ),
]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (3.0, 0.7)])
@pytest.mark.parametrize(("tail", "divergence"), CASES)
def test_equals_autograd(
    tail: Tail, divergence: Divergence, softcap: float | None, scale: float, temperature: float
) -> None:
    student, labels, teacher = random_case(3, softcap=softcap, scale=scale)
    p = (teacher / temperature).softmax(-1)
    targets = with_padding(top_k(p, 6, tail if tail != "none" else "ghost", temperature), torch.arange(11) % 6 + 1)
    if tail == "none":
        targets = replace(targets, tail="none", kind="sampled")
    labels[:4] = targets.ids[:4, 0]  # some labels are kept, most are not
    given = terms(divergence, ce=0.7, kd=0.3, temperature=temperature, vocab_size=23)
    ce, kd = reference(student, labels, targets, given)
    wanted = (0.7 * ce + 0.3 * kd).sum() / 11
    assert student.bias is not None
    leaves = [student.hidden, student.weight, student.bias]
    expected = torch.autograd.grad(wanted, leaves)
    output = sparse_objective(student, labels, targets, given, normaliser=11.0, chunk=4, compiled=False)
    torch.testing.assert_close(output.loss, wanted)
    torch.testing.assert_close(output.ce, ce)
    torch.testing.assert_close(output.kd, kd)
    for found, want in zip(torch.autograd.grad(output.loss, leaves), expected, strict=True):
        torch.testing.assert_close(found, want, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("tail", ["renormalised", "ghost"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_every_id_kept_equals_dense(tail: Tail, temperature: float) -> None:
    student, labels, teacher = random_case(5, rows=23)
    given = terms(ce=0.5, kd=0.5, temperature=temperature, vocab_size=23)
    dense = fused_objective(
        student,
        labels,
        Projection(teacher, torch.eye(23, dtype=torch.float64)),
        given,
        normaliser=2.0,
        chunk=5,
        compiled=False,
    )
    targets = top_k((teacher / temperature).softmax(-1), 99, tail, temperature)
    sparse = sparse_objective(student, labels, targets, given, normaliser=2.0, chunk=5, compiled=False)
    torch.testing.assert_close(sparse.loss, dense.loss)
    torch.testing.assert_close(sparse.kd, dense.kd)
    torch.testing.assert_close(sparse.ce_grad_square, dense.ce_grad_square)
    torch.testing.assert_close(sparse.kd_grad_square, dense.kd_grad_square)
    assert torch.equal(sparse.top1_agreement, dense.top1_agreement)
    for found, want in zip(
        torch.autograd.grad(sparse.loss, [student.hidden, student.weight]),
        torch.autograd.grad(dense.loss, [student.hidden, student.weight]),
        strict=True,
    ):
        torch.testing.assert_close(found, want)


def test_gradient_squares_are_those_of_the_logits() -> None:
    """The two diagnostics equal the squared norms of the gradients at the logits, each weighted."""
    z, labels = random_case(8, rows=23)[2], torch.arange(11)
    targets = top_k(random_case(9)[2].softmax(-1), 4, "ghost")
    both = on_logits(z, labels, targets, terms(ce=0.6, kd=0.4, vocab_size=23))[0]
    ce_only = on_logits(z, labels, targets, terms(ce=0.6, kd=0.0, vocab_size=23))[1]
    kd_only = on_logits(z, labels, targets, terms(ce=0.0, kd=0.4, vocab_size=23))[1]
    torch.testing.assert_close(both.ce_grad_square, ce_only.square().sum())
    torch.testing.assert_close(both.kd_grad_square, kd_only.square().sum())


def test_equal_distributions_have_no_loss_and_no_gradient() -> None:
    targets = top_k(TEACHER.softmax(-1), 2, "ghost")
    output, gradient = on_logits(TEACHER, torch.tensor([3]), targets, terms())
    assert output.loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_tail_far_below_rounding_stays_finite() -> None:
    """A student with e^-100 of its mass outside the kept ids: log q_r is exact, and nothing overflows."""
    z = torch.tensor([[0.0, -0.5, -100.0, -101.0]])
    targets = SparseTargets(torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.3]]), "ghost", "top_k", 1.0, 4)
    output, gradient = on_logits(z, torch.tensor([2]), targets, terms())
    # log q_r = -100 + log(1 + e^-1) - log(1 + e^-.5) = -100.1608 and p_r (log .1 - log q_r) = 9.7858;
    # kept: .6 log(.6/.622459) = -.022051 and .3 log(.3/.377541) = -.068966.
    assert output.loss.item() == pytest.approx(9.694800, abs=1e-4)
    # a_r q_j / q_r: the missing tenth is asked for where the student's tail already is, 73 to 27.
    torch.testing.assert_close(gradient[0, 2:], torch.tensor([-0.0731, -0.0269]), atol=1e-3, rtol=0)


def test_half_precision_gradient_of_a_confident_label() -> None:
    """q_y near 1: its gradient is formed in float32 and rounded once, so it does not drown in q's rounding."""
    z = torch.tensor([[9.0, 0.0, 0.0, 0.0]])
    targets = SparseTargets(torch.tensor([[1]]), torch.ones(1, 1), "renormalised", "top_k", 1.0, 4)
    exact = on_logits(z, torch.tensor([0]), targets, terms(ce=1.0, kd=0.0))[1]
    rounded = on_logits(z.bfloat16(), torch.tensor([0]), targets, terms(ce=1.0, kd=0.0))[1]
    torch.testing.assert_close(rounded.float(), exact, rtol=8e-3, atol=0)


def test_accumulator_takes_the_head_gradient() -> None:
    student, labels, teacher = random_case(6)
    targets, given = top_k(teacher.softmax(-1), 5, "ghost"), terms(ce=0.5, kd=0.5, vocab_size=23)
    arguments = {"normaliser": 3.0, "chunk": 4, "compiled": False}
    plain = sparse_objective(student, labels, targets, given, **arguments)
    (expected,) = torch.autograd.grad(plain.loss, student.weight)
    total = torch.ones_like(student.weight, requires_grad=False)
    sparse_objective(student, labels, targets, given, weight_grad_accumulator=total, **arguments).loss.backward()
    assert student.weight.grad is None
    torch.testing.assert_close(total, expected + 1)
    assert torch.equal(total[23:], torch.ones_like(total[23:]))  # padding rows get none


def test_no_tokens_and_no_grad() -> None:
    student, labels, teacher = random_case(7)
    targets, given = top_k(teacher.softmax(-1), 5, "ghost"), terms(ce=0.5, kd=0.5, vocab_size=23)
    none = SparseTargets(targets.ids[:0], targets.weight[:0], "ghost", "top_k", 1.0, 23)
    empty = replace(student, hidden=student.hidden[:0])
    output = sparse_objective(empty, labels[:0], none, given, normaliser=1.0, chunk=4, compiled=False)
    output.loss.backward()
    assert output.loss.item() == 0
    assert torch.equal(student.weight.grad, torch.zeros_like(student.weight))
    with torch.no_grad():
        quiet = sparse_objective(student, labels, targets, given, normaliser=1.0, chunk=4, compiled=False)
    assert not quiet.loss.requires_grad
    whole = sparse_objective(student, labels, targets, given, normaliser=1.0, chunk=40, compiled=False)
    torch.testing.assert_close(quiet.loss, whole.loss.detach())


def test_statistics_of_the_capture_are_handed_on() -> None:
    student, labels, teacher = random_case(7)
    targets = top_k(teacher.softmax(-1), 5, "ghost")
    given = terms(ce=1.0, kd=0.0, vocab_size=23)
    arguments = {"normaliser": 1.0, "chunk": 4, "compiled": False}
    assert sparse_objective(student, labels, targets, given, **arguments).teacher_nll is None
    kept = replace(targets, teacher_nll=torch.arange(11.0), teacher_entropy=torch.ones(11))
    output = sparse_objective(student, labels, kept, given, **arguments)
    assert torch.equal(output.teacher_nll, kept.teacher_nll)
    assert torch.equal(output.teacher_entropy, kept.teacher_entropy)
    logits = (student.hidden @ student.weight.T + student.bias)[:, :23]
    assert torch.equal(output.top1_agreement, logits.argmax(1) == targets.top1)


@pytest.mark.parametrize("tail", ["renormalised", "none"])
def test_other_divergences_are_refused_by_name(tail: Tail) -> None:
    with pytest.raises(RecipeError, match=r"stages\.2\.objective\.divergence=reverse_kl .*teacher\.cache\.codec="):
        check_sparse_targets(tail, 1.0, terms(reverse_kl()), stage=2)
    check_sparse_targets("ghost", 1.0, terms(reverse_kl()))


def test_other_temperature_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"stages\.0\.objective\.temperature=2\.0 .*teacher\.cache\.temperature=1\.0"):
        check_sparse_targets("ghost", 1.0, terms(temperature=2.0))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_compiled_equals_eager(temperature: float) -> None:
    student, labels, teacher = random_case(6)
    student = replace(student, hidden=student.hidden.float(), weight=student.weight.float(), bias=student.bias.float())
    targets = top_k((teacher / temperature).softmax(-1).float(), 5, "ghost", temperature)
    given = terms(ce=0.5, kd=0.5, temperature=temperature, vocab_size=23)
    results = []
    for compiled in (False, True):
        output = sparse_objective(student, labels, targets, given, normaliser=3.0, chunk=4, compiled=compiled)
        results.append([output.loss, *torch.autograd.grad(output.loss, [student.hidden, student.weight])])
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager)
