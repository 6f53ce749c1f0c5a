"""Sums over dtypes are exact in the wider one, across block borders."""

from __future__ import annotations

import pytest
import torch

from stillhouse.divergence import accumulate
from stillhouse.divergence.accumulate import add_converted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_element_is_added_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulate, "BLOCK_ELEMENTS", 7)
    total = torch.arange(30, dtype=torch.float32).view(5, 6)
    part = torch.full((6, 5), 0.25, dtype=dtype).t()  # not contiguous
    add_converted(total, part)
    assert torch.equal(total, torch.arange(30, dtype=torch.float32).view(5, 6) + 0.25)
