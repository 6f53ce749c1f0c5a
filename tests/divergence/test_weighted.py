"""Cross-entropy weighted by domain: against the plain sum over tokens, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stillhouse.divergence.objective import ObjectiveTerms
from stillhouse.divergence.weighted import domain_weighted_objective
from stillhouse.mixture.doremi import proxy_loss
from stillhouse.recipe import SFTObjective
from stillhouse.teachers.protocol import Projection

VOCABULARY, WIDTH = 11, 5
TERMS = ObjectiveTerms.from_config(SFTObjective(type="sft"), VOCABULARY)
HOW: dict[str, Any] = {"normaliser": 7.5, "chunk": 16, "compiled": False}


def world(num_tokens: int = 9) -> tuple[Projection, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(VOCABULARY, (num_tokens,), generator=generator)
    return Projection(hidden, weight), labels, torch.randint(3, (num_tokens,), generator=generator)


def test_loss_and_gradients_are_those_of_the_weighted_sum() -> None:
    student, labels, domains = world()
    weights = [0.5, 2.0, 1.25]
    output = domain_weighted_objective(student, labels, domains, weights, TERMS, **HOW)
    output.loss.backward()
    found = student.hidden.grad, student.weight.grad
    student.hidden.grad = student.weight.grad = None
    ce = torch.nn.functional.cross_entropy(student.hidden @ student.weight.T, labels, reduction="none")
    expected = (ce * torch.tensor(weights, dtype=torch.float64)[domains]).sum() / 7.5
    expected.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(output.ce.double(), ce, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(found, (student.hidden.grad, student.weight.grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    import numpy as np

    torch.testing.assert_close(proxy_loss(ce, domains, np.array(weights), 7.5).double(), expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_the_head_may_go_into_an_accumulator() -> None:
    student, labels, domains = world()
    room = torch.zeros_like(student.weight)
    domain_weighted_objective(
        student, labels, domains, [1.0, 2.0, 0.5], TERMS, **HOW, weight_grad_accumulator=room
    ).loss.backward()
    assert student.weight.grad is None
    domain_weighted_objective(student, labels, domains, [1.0, 2.0, 0.5], TERMS, **HOW).loss.backward()
    torch.testing.assert_close(room, student.weight.grad)


def test_a_domain_without_weight_is_measured_and_not_learned() -> None:
    student, labels, domains = world()
    output = domain_weighted_objective(student, labels, domains, [0.0, 1.0, 1.0], TERMS, **HOW)
    output.loss.backward()
    assert student.hidden.grad is not None
    assert (student.hidden.grad[domains == 0] == 0).all()
    assert (output.ce[domains == 0] > 0).all()


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
def test_no_token_gives_zero_with_a_graph(weights: list[float]) -> None:
    student, labels, domains = world(0)
    output = domain_weighted_objective(student, labels, domains, weights, TERMS, **HOW)
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert student.hidden.grad is not None
