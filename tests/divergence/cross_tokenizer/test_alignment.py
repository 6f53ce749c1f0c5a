"""Groups of tokens that write the same text: hand-worked, against a walk over both sides, and on random texts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.cross_tokenizer import align_by_walking
from stillhouse.divergence.cross_tokenizer.alignment import Spans, align, place


def spans(ends: list[int], first: int = 0) -> Spans:
    return Spans(np.array([first, *ends[:-1]][: len(ends)], np.int64), np.array(ends, np.int64))


def rows_by_group(student: np.ndarray, teacher: np.ndarray) -> list[tuple[list[int], list[int]]]:
    count = max([-1, *student.tolist(), *teacher.tolist()]) + 1
    return [(np.flatnonzero(student == g).tolist(), np.flatnonzero(teacher == g).tolist()) for g in range(count)]


def test_groups_close_where_both_sides_end() -> None:
    # methods.md section 8: ends 2, 5, 9 and 5, 7, 9.
    found = rows_by_group(*align(spans([2, 5, 9]), spans([5, 7, 9])))
    assert found == [([0, 1], [0]), ([2], [1, 2])]


def test_tokens_without_bytes_and_texts_without_a_common_start_are_in_no_group() -> None:
    # Student 0-3-3-5; teacher begins at 1: the text from 1 to 3 has no whole student token.
    student, teacher = align(spans([3, 3, 5]), spans([3, 5], first=1))
    assert student.tolist() == [-1, -1, 0]
    assert teacher.tolist() == [-1, 0]


def test_a_gap_on_one_side_breaks_its_group_only() -> None:
    # The student's token 2-4 is missing, so nothing covers 2 to 4 on its side.
    student = Spans(np.array([0, 4]), np.array([2, 6]))
    ours, theirs = align(student, spans([2, 6]))
    assert (ours.tolist(), theirs.tolist()) == ([0, -1], [0, -1])


def test_nothing_in_common_is_no_group() -> None:
    ours, theirs = align(spans([]), spans([3]))
    assert (ours.tolist(), theirs.tolist()) == ([], [-1])


ends_of_one_text = st.integers(1, 40).flatmap(
    lambda length: st.tuples(*[st.sets(st.integers(1, length)).map(lambda s: sorted({*s, length})) for _ in range(2)])
)


@given(ends_of_one_text)
def test_cutting_at_common_boundaries_is_walking(ends: tuple[list[int], list[int]]) -> None:
    assert rows_by_group(*align(spans(ends[0]), spans(ends[1]))) == align_by_walking(*ends)


@given(ends_of_one_text)
def test_groups_cover_the_text_once_and_cannot_be_split(ends: tuple[list[int], list[int]]) -> None:
    sides = [spans(e) for e in ends]
    groups = align(*sides)
    edges = []
    for side, group in zip(sides, groups, strict=True):
        assert (group >= 0).all()
        assert set(np.diff(group).tolist()) <= {0, 1}
        edges.append([int(side.ends[group == g][-1]) for g in range(group[-1] + 1)])
    assert edges[0] == edges[1]
    inside = [set(side.ends.tolist()) for side in sides]
    assert all(not (inside[0] & inside[1] & set(range(a + 1, b))) for a, b in pairwise([0, *edges[0]]))


def cut(text: bytes, ends: list[int]) -> list[bytes]:
    return [text[a:b] for a, b in pairwise([0, *ends])]


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=12), st.data())
def test_tokens_are_placed_in_the_content_that_a_template_trimmed(content: str, data: st.DataObject) -> None:
    raw = content.encode()
    written = data.draw(st.sampled_from([raw, raw.strip(), b" " + raw.strip(), b"\n" + raw.strip() + b"\n"]))
    if not raw.strip():
        assert place([written], raw) is None
        return
    ends = sorted({*data.draw(st.sets(st.integers(1, len(written)))), len(written)})
    tokens = cut(written, ends)
    found = place(tokens, raw)
    assert found is not None
    where, same = found
    for token, start, end, ok in zip(tokens, where.starts, where.ends, same, strict=True):
        if ok:
            assert raw[start:end] == token[len(token) - (end - start) :]
            assert len(token) - (end - start) in (0, 1)
        else:
            assert start < 0 or end > len(raw) or raw[start:end] != token


def test_a_space_before_the_content_belongs_to_its_first_token() -> None:
    found = place([b" Hel", b"lo", b"\n"], b"Hello")
    assert found is not None
    assert found[0].starts.tolist() == [0, 3, 5]
    assert found[1].tolist() == [True, True, False]


def test_a_cut_off_answer_is_found_by_its_beginning() -> None:
    found = place([b"\xc3\xa9t\xc3", b"\xa9 no"], "été nouveau".encode())
    assert found is not None
    assert found[0].ends.tolist() == [4, 8]
    assert found[1].all()


@pytest.mark.parametrize("written", [[b"<think>", b"Hel"], [b"Bye"], []])
def test_another_text_is_not_found(written: list[bytes]) -> None:
    assert place(written, b"Hello") is None
