"""The seeds that the tests of this room share."""

from __future__ import annotations

import pytest
from scripted import ANIMALS, row

from stillhouse.data.rows import Row


@pytest.fixture
def seeds() -> list[Row]:
    """Eight rows with a shared instruction and a label."""
    return [row(text, answer, number=i) for i, (text, answer) in enumerate(ANIMALS)]
