"""Sparse targets check themselves, and can be cut to a smaller vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stillhouse.errors import DataError
from stillhouse.targets.sparse import PADDING, SparseTargets

GOOD = SparseTargets(
    ids=torch.tensor([[4, 1, 7], [2, PADDING, PADDING]]),
    weight=torch.tensor([[0.5, 0.25, 0.125], [0.9, 0.0, 0.0]]),
    tail="ghost",
    kind="top_k",
    temperature=1.0,
    vocab_size=8,
)


def test_good_targets_pass() -> None:
    GOOD.check()
    assert len(GOOD) == 2
    assert GOOD.top1.tolist() == [4, 2]
    assert GOOD.valid.sum().item() == 4


@pytest.mark.parametrize(
    ("ids", "weight", "message"),
    [
        ([[4, 1, 4], [2, -1, -1]], None, "row 0 lists an id twice"),
        ([[4, 1, 7], [8, -1, -1]], None, "row 1 lists an id outside 0 to 7"),
        ([[4, 1, 7], [-1, -1, -1]], None, "row 1 lists no id"),
        (None, [[0.5, -0.1, 0.1], [0.9, 0.0, 0.0]], "row 0 has a negative or undefined weight"),
        (None, [[0.5, 0.4, 0.3], [0.9, 0.0, 0.0]], "row 0 has weights that sum to more than 1"),
    ],
)
def test_bad_rows_are_named(ids: list[list[int]] | None, weight: list[list[float]] | None, message: str) -> None:
    bad = replace(
        GOOD,
        ids=GOOD.ids if ids is None else torch.tensor(ids),
        weight=GOOD.weight if weight is None else torch.tensor(weight),
    )
    with pytest.raises(DataError, match=message):
        bad.check()


def test_restricted_shares_the_mass_of_dropped_ids() -> None:
    """Vocabulary 5 drops ids 7 (.125): the rest is divided by .875, and the ghost (.125) with it."""
    small = GOOD.restricted(5)
    assert small.ids.tolist() == [[4, 1, PADDING], [2, PADDING, PADDING]]
    torch.testing.assert_close(small.weight, torch.tensor([[0.5 / 0.875, 0.25 / 0.875, 0], [0.9, 0, 0]]))
    small.check()
    first = GOOD.restricted(3)  # 4 and 7 go, 1 moves to the front
    assert first.ids[0].tolist() == [1, PADDING, PADDING]
    with pytest.raises(DataError, match="all its mass on ids at or above 2"):
        GOOD.restricted(2)
