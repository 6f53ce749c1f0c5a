"""The plan: a pure function of seed and step, without a forgotten document."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import DataError
from stillhouse.mixture.plan import Plan, epoch_order
from stillhouse.recipe import Budget


def test_epoch_orders_are_permutations_that_differ() -> None:
    first, second = epoch_order(50, 0, 0), epoch_order(50, 0, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
    assert first.tolist() == epoch_order(50, 0, 0).tolist()
    assert first.tolist() != epoch_order(50, 1, 0).tolist()


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=15),
    batch_tokens=st.integers(1, 80),
    seed=st.integers(0, 3),
    steps=st.integers(1, 25),
)
@settings(max_examples=80, deadline=None)
def test_steps_are_greedy_and_cover_the_epochs_in_order(
    lengths: list[int], batch_tokens: int, seed: int, steps: int
) -> None:
    plan = Plan(np.array(lengths), batch_tokens=batch_tokens, seed=seed)
    taken = [plan.documents(step).tolist() for step in range(steps)]
    for documents in taken:
        tokens = [lengths[i] for i in documents]
        assert sum(tokens) >= batch_tokens
        assert sum(tokens[:-1]) < batch_tokens  # the last document is needed
    stream = [i for documents in taken for i in documents]
    expected = [
        int(i) for epoch in range(len(stream) // len(lengths) + 1) for i in epoch_order(len(lengths), seed, epoch)
    ]
    assert stream == expected[: len(stream)]
    assert plan.tokens_before(steps) == sum(lengths[i] for i in stream)
    assert plan.epochs_before(steps) == len(stream) / len(lengths)
    # Asked for out of order by a resumed run, a step is the same.
    assert Plan(np.array(lengths), batch_tokens=batch_tokens, seed=seed).documents(steps - 1).tolist() == taken[-1]


def test_partial_batches_cross_the_ends_of_epochs() -> None:
    # 2,000 synthetic rows, batch 16, 2 epochs: 4000/16 = 250 steps; 200 rows, 3 epochs: 600/16 = 37.5 -> 38.
    synthetic, human = (Plan(np.ones(n, np.int64), batch_tokens=16, seed=0) for n in (2000, 200))
    assert synthetic.num_steps_for(Budget(epochs=2)) == 250
    assert human.num_steps_for(Budget(epochs=3)) == 38


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget(steps=7), 7),
        (Budget(tokens=100), 10),  # 10 a step
        (Budget(tokens=101), 11),
        (Budget(epochs=0.1), 2),  # 3 of 30 documents, two a step: 1.5
        (Budget(epochs=1, steps=99), 15),
        (Budget(epochs=1, tokens=20), 2),
        (Budget(tokens=1), 1),
    ],
)
def test_first_limit_ends_the_budget(budget: Budget, steps: int) -> None:
    plan = Plan(np.full(30, 5), batch_tokens=10, seed=0)
    assert plan.num_steps_for(budget) == steps


def test_a_late_step_of_a_small_set_is_cheap() -> None:
    plan = Plan(np.full(3, 10), batch_tokens=1000, seed=0)
    # 100 documents a step, so step 400 begins at document 40,000 of epochs of 3.
    assert len(plan.documents(400)) == 100
    assert plan.documents(400)[0] == epoch_order(3, 0, 40_000 // 3)[40_000 % 3]


def test_no_documents_is_refused() -> None:
    with pytest.raises(DataError, match="no documents to plan"):
        Plan(np.zeros(0, np.int64), batch_tokens=10, seed=0)
