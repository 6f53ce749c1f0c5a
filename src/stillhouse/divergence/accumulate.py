"""Adding a gradient in a low precision to a float32 sum."""

from __future__ import annotations

from torch import Tensor

BLOCK_ELEMENTS = 1 << 20


def add_converted(total: Tensor, part: Tensor) -> None:
    """``total += part`` for a contiguous float32 or float64 ``total`` and a ``part`` of the same shape, any dtype.

    On CPU an addition over two dtypes does not vectorise (118 ms against 14 for 28M elements, two
    threads), so blocks of a size that stays in the cache are converted first.
    """
    if total.device.type != "cpu" or part.dtype == total.dtype:
        total += part
        return
    sums, values = total.view(-1), part.reshape(-1)
    for start in range(0, len(sums), BLOCK_ELEMENTS):
        sums[start : start + BLOCK_ELEMENTS] += values[start : start + BLOCK_ELEMENTS].to(total.dtype)
