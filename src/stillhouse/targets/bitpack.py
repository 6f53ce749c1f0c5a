"""Integers of any bit width at any bit position of a byte string, without a loop over elements.

Bits are numbered from the least significant bit of byte 0 upwards. A *plane* is a run of integers
of one width; a document's record is a few planes one after the other, and a batch of records is
written or read plane by plane for all its documents at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

MAX_WIDTH = 32


def bits_for(largest: int) -> int:
    """Return the bits that hold 0 to ``largest``, at least 1."""
    return max(1, int(largest).bit_length())


def write_bits(buffer: Bytes, values: npt.NDArray[np.generic], positions: IntArray, width: int) -> None:
    """Put ``values`` [M] into ``buffer``, each ``width`` bits from bit ``positions`` [M] on.

    The bits must be zero before, and no two values may overlap.
    """
    assert 1 <= width <= MAX_WIDTH
    if not len(values):
        return
    first = positions >> 3
    shifted = values.astype(np.uint64) << (positions & 7).astype(np.uint64)
    base = int(first.min())
    for k in range((width + 14) // 8):
        piece = (shifted >> np.uint64(8 * k)) & np.uint64(255)
        # Values share bytes but no bits, so their sum is their union; float64 sums are exact here.
        sums = np.bincount(first - base + k, weights=piece)
        stop = min(base + len(sums), len(buffer))
        buffer[base:stop] |= sums[: stop - base].astype(np.uint8)


def read_bits(buffer: Bytes, positions: IntArray, width: int) -> IntArray:
    """Return the integers [M] of ``width`` bits at bits ``positions`` [M].

    The byte after a value may be read too; its bits are cut off, so at the buffer's end any byte serves.
    """
    assert 1 <= width <= MAX_WIDTH
    if not len(positions):
        return np.zeros(0, np.int64)
    first = positions >> 3
    value = np.zeros(len(positions), np.uint64)
    for k in range((width + 14) // 8):
        value |= buffer.take(first + k, mode="clip").astype(np.uint64) << np.uint64(8 * k)
    return ((value >> (positions & 7).astype(np.uint64)) & np.uint64((1 << width) - 1)).astype(np.int64)


def within(counts: IntArray) -> IntArray:
    """Return 0, 1, .. counts[0]-1, 0, 1, .. counts[1]-1, ..: the place of each element in its group."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) - np.repeat(ends - counts, counts)


class PlaneWriter:
    """Collects planes for D documents and lays their records one after the other."""

    def __init__(self, num_documents: int) -> None:
        self._num_documents = num_documents
        self._planes: list[tuple[int, npt.NDArray[np.generic], IntArray]] = []

    def add(self, width: int, values: npt.NDArray[np.generic], counts: IntArray) -> None:
        """Append a plane: ``values`` [sum counts] in document order, ``counts`` [D] per document."""
        assert len(counts) == self._num_documents
        assert int(counts.sum()) == len(values)
        self._planes.append((width, values, counts))

    def finish(self) -> tuple[Bytes, IntArray]:
        """Return the bytes of all records and their offsets [D+1]; each record starts at a byte."""
        bits = np.zeros(self._num_documents, np.int64)
        for width, _, counts in self._planes:
            bits += width * counts
        offsets = np.zeros(self._num_documents + 1, np.int64)
        np.cumsum((bits + 7) // 8, out=offsets[1:])
        buffer = np.zeros(int(offsets[-1]), np.uint8)
        cursor = offsets[:-1] * 8
        for width, values, counts in self._planes:
            write_bits(buffer, values, np.repeat(cursor, counts) + width * within(counts), width)
            cursor = cursor + width * counts
        return buffer, offsets


class PlaneReader:
    """Reads the planes of D records in the order in which they were added."""

    def __init__(self, buffer: Bytes, starts: IntArray) -> None:
        """``starts`` [D]: the byte at which each document's record begins."""
        self._buffer = buffer
        self._cursor = starts.astype(np.int64) * 8

    def read(self, width: int, counts: IntArray) -> IntArray:
        """Return the next plane, [sum counts], of which document d has ``counts[d]`` values."""
        values = read_bits(self._buffer, np.repeat(self._cursor, counts) + width * within(counts), width)
        self._cursor = self._cursor + width * counts
        return values

    @property
    def ends(self) -> IntArray:
        """The byte after what was read of each record, [D]."""
        return (self._cursor + 7) // 8
