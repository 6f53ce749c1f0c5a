"""Integers of any width at any bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.targets.bitpack import PlaneReader, PlaneWriter, bits_for, read_bits, within, write_bits


@pytest.mark.parametrize(("largest", "bits"), [(0, 1), (1, 1), (2, 2), (255, 8), (256, 9), (49151, 16), (151935, 18)])
def test_bits_for(largest: int, bits: int) -> None:
    assert bits_for(largest) == bits


def test_layout_is_least_significant_bit_first() -> None:
    buffer = np.zeros(3, np.uint8)
    write_bits(buffer, np.array([5]), np.array([0]), 3)
    write_bits(buffer, np.array([1023, 3]), np.array([3, 13]), 10)
    assert read_bits(buffer, np.array([0]), 3).tolist() == [5]
    assert read_bits(buffer, np.array([3, 13]), 10).tolist() == [1023, 3]
    assert buffer.tolist() == [0b11111101, 0b01111111, 0]


@settings(deadline=None)
@given(data=st.data(), width=st.integers(1, 32), start=st.integers(0, 70))
def test_round_trip_at_any_bit(data: st.DataObject, width: int, start: int) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40)), np.int64)
    positions = start + width * np.arange(len(values))
    buffer = np.zeros((start + width * len(values) + 7) // 8, np.uint8)
    write_bits(buffer, values, positions, width)
    assert read_bits(buffer, positions, width).tolist() == values.tolist()
    ones = np.unpackbits(buffer, bitorder="little")
    assert not ones[:start].any()
    assert ones.sum() == sum(int(v).bit_count() for v in values)


@settings(deadline=None)
@given(data=st.data())
def test_planes_of_many_documents(data: st.DataObject) -> None:
    """What planes were added per document comes back, whichever documents are read and in which order."""
    documents = data.draw(st.integers(0, 6))
    widths = data.draw(st.lists(st.integers(1, 32), min_size=1, max_size=4))
    planes = [[data.draw(st.lists(st.integers(0, 2**w - 1), max_size=5)) for _ in range(documents)] for w in widths]
    writer = PlaneWriter(documents)
    for width, plane in zip(widths, planes, strict=True):
        flat = np.array([v for values in plane for v in values], np.int64)
        writer.add(width, flat, np.array([len(values) for values in plane], np.int64))
    buffer, offsets = writer.finish()
    order = data.draw(st.permutations(range(documents)))
    reader = PlaneReader(buffer, offsets[:-1][list(order)])
    for width, plane in zip(widths, planes, strict=True):
        counts = np.array([len(plane[d]) for d in order], np.int64)
        assert reader.read(width, counts).tolist() == [v for d in order for v in plane[d]]
    assert reader.ends.tolist() == offsets[1:][list(order)].tolist()


def test_within() -> None:
    assert within(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]
    assert within(np.zeros(0, np.int64)).tolist() == []
