from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stillhouse.divergence.hidden_state import (
    Filter,
    alignment_loss,
    filter_task_loss,
    filtered,
    layer_map,
    make_filters,
    masked_mse,
    unit_scale,
)
from stillhouse.errors import RecipeError

H_TEACHER = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
W_TEACHER = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
H_STUDENT = torch.tensor([[1.0, 1.0], [0.0, 2.0]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def teacher_filter() -> Filter:
    filter_ = Filter(3, 2, generator=generator())
    with torch.no_grad():
        filter_.first.weight.copy_(W_TEACHER.T)
    return filter_


def test_mse_of_methods_section_7() -> None:
    goal = teacher_filter()(H_TEACHER)
    assert goal.tolist() == [[3.0, 2.0], [1.0, 2.0]]
    # differences [[2, 1], [1, 0]]: (4 + 1 + 1 + 0) / 4 = 1.5; without token 1 (4 + 1) / 2 = 2.5
    assert masked_mse(H_STUDENT, goal).item() == 1.5
    assert masked_mse(H_STUDENT, goal, torch.tensor([True, False])).item() == 2.5


def test_alignment_loss_with_an_identity_student_filter() -> None:
    students = nn.ModuleList([Filter(2, 2, generator=generator())])
    goals = filtered([H_TEACHER], nn.ModuleList([teacher_filter()]))
    value = alignment_loss([H_STUDENT], goals, students)
    assert value.item() == 1.5


def test_alignment_loss_averages_over_layers_and_trains_the_student_side_only() -> None:
    students, teachers = nn.ModuleList(), nn.ModuleList()
    for _ in range(2):
        students.append(Filter(2, 2, generator=generator()))
        teachers.append(teacher_filter())
    far, near = H_STUDENT.clone().requires_grad_(), torch.tensor([[3.0, 2.0], [1.0, 2.0]], requires_grad=True)
    goal = H_TEACHER.clone().requires_grad_()
    value = alignment_loss([far, near], filtered([goal, goal], teachers), students)
    assert value.item() == 0.75  # (1.5 + 0) / 2
    value.backward()
    assert far.grad is not None
    assert far.grad.abs().sum() > 0
    assert goal.grad is None
    assert all(p.grad is None for p in teachers.parameters())
    assert all(p.grad is not None for p in students.parameters())


def test_outputs_are_scaled_row_by_row() -> None:
    # [3, 4]: mean square 12.5, so divided by 3.5355; a row of zeros stays zero with a finite gradient
    hidden = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-300.0, 400.0]], requires_grad=True)
    scaled = unit_scale(hidden)
    torch.testing.assert_close(scaled, torch.tensor([[0.848528, 1.131371], [0.0, 0.0], [-0.848528, 1.131371]]))
    scaled[0].sum().backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad[0] @ torch.tensor([3.0, 4.0]), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_micro_batches_add_up_under_one_normaliser() -> None:
    a, b = torch.randn(2, 7, 3, generator=generator())
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1], dtype=torch.bool)
    parts = sum(masked_mse(a[part], b[part], mask[part], normaliser=5) for part in (slice(0, 3), slice(3, 7)))
    torch.testing.assert_close(parts, masked_mse(a, b, mask))


def test_no_counted_token_gives_zero_with_a_graph() -> None:
    hidden = torch.ones(2, 3, requires_grad=True)
    value = masked_mse(hidden, torch.zeros(2, 3), torch.tensor([False, False]))
    value.backward()
    assert value.item() == 0.0
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[0.0] * 3] * 2


def test_masked_rows_may_hold_anything_and_get_no_gradient() -> None:
    hidden = torch.tensor([[1.0, 2.0], [float("nan"), 5.0]], requires_grad=True)
    value = masked_mse(hidden, torch.zeros(2, 2), torch.tensor([True, False]))
    assert value.item() == 2.5
    value.backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[1.0, 2.0], [0.0, 0.0]]  # 2 * h / 2


def test_half_precision_is_summed_in_float32() -> None:
    value = masked_mse(torch.full((4096, 8), 1.0, dtype=torch.bfloat16), torch.zeros(4096, 8))
    assert value.dtype == torch.float32
    assert value.item() == 1.0


@given(st.integers(1, 48).flatmap(lambda layers: st.tuples(st.integers(1, layers), st.just(layers))))
def test_layer_map_is_rising_even_and_ends_at_the_last_layer(sizes: tuple[int, int]) -> None:
    filters, layers = sizes
    mapped = layer_map(filters, layers)
    assert len(set(mapped)) == filters
    assert list(mapped) == sorted(mapped)
    assert mapped[0] >= 1
    assert mapped[-1] == layers
    assert all(abs(layer - k * layers / filters) <= 0.5 for k, layer in enumerate(mapped, start=1))


def test_layer_map_numbers() -> None:
    assert layer_map(3, 12) == (4, 8, 12)
    assert layer_map(12, 12) == tuple(range(1, 13))
    assert layer_map(4, 30) == (8, 15, 23, 30)  # 7.5 and 22.5 round up
    with pytest.raises(RecipeError, match="filters=5: the model has only 4 layers"):
        layer_map(5, 4)


def test_square_filter_starts_as_the_identity_and_others_by_seed_side_and_number() -> None:
    hidden = torch.randn(4, 3, generator=generator())
    torch.testing.assert_close(make_filters(1, 3, 3, seed=0, side="student")[0](hidden), hidden)
    weights = [
        make_filters(2, 3, 2, seed=seed, side=side)[k].first.weight
        for seed, side, k in [
            (0, "student", 0),
            (0, "student", 0),
            (0, "student", 1),
            (0, "teacher", 0),
            (1, "student", 0),
        ]
    ]
    assert torch.equal(weights[0], weights[1])
    assert not any(torch.equal(weights[0], other) for other in weights[2:])


def test_making_filters_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    make_filters(2, 8, 4, seed=0, side="student", mlp_features=16)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mlp_filter_has_its_shape_and_reads_half_precision() -> None:
    filter_ = make_filters(1, 6, 4, seed=0, side="teacher", mlp_features=10)[0]
    assert [tuple(p.shape) for p in filter_.parameters()] == [(10, 6), (4, 10)]
    hidden = torch.randn(5, 6, generator=generator()).bfloat16()
    out = filter_(hidden)
    assert (out.shape, out.dtype) == ((5, 4), torch.float32)
    expected = nn.functional.gelu(hidden.float() @ filter_.first.weight.T) @ filter_.second.weight.T
    torch.testing.assert_close(out, expected)


def test_stage_one_trains_filters_and_nothing_below_them() -> None:
    filters = make_filters(2, 3, 3, seed=0, side="student")
    hidden = [torch.full((2, 3), value, requires_grad=True) for value in (1.0, 3.0)]
    seen: list[Tensor] = []

    def task_loss(features: Tensor) -> Tensor:
        seen.append(features.detach())
        return features.mean()

    loss = filter_task_loss(hidden, filters, task_loss)
    assert loss.item() == 2.0  # identity filters: (1 + 3) / 2, each layer on its own
    assert [f[0, 0].item() for f in seen] == [1.0, 3.0]
    loss.backward()
    assert all(h.grad is None for h in hidden)
    assert all(p.grad is not None for p in filters.parameters())


def test_stage_one_on_a_real_head_keeps_it_frozen_and_lowers_the_loss() -> None:
    head = torch.randn(7, 4, generator=generator(1))
    hidden = [torch.randn(20, 4, generator=generator(k + 2)) for k in range(2)]
    labels = torch.randint(7, (20,), generator=generator(5))
    filters = make_filters(2, 4, 4, seed=0, side="teacher")
    optimizer = torch.optim.SGD(filters.parameters(), lr=0.5)

    def task_loss(features: Tensor) -> Tensor:
        return nn.functional.cross_entropy(features @ head.T, labels)

    losses = []
    for _ in range(10):
        loss = filter_task_loss(hidden, filters, task_loss)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
