"""Which tokens of two tokenizations stand for the same text: groups between common byte boundaries.

Going through both tokenizations, the side that ends earlier advances, and a group is closed where
both ends coincide (GOLD). That is the same as cutting the text at every byte where both have a
boundary, which needs no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

UNGROUPED = -1


class Spans(NamedTuple):
    """Where tokens begin and end in a text, bytes, int64 [T] each; they ascend and do not overlap."""

    starts: IntArray
    ends: IntArray


def align(student: Spans, teacher: Spans) -> tuple[IntArray, IntArray]:
    """Return the group of every token of both sides, int64 [S] and [T], -1 where it is in none.

    A group is the smallest stretch of text that whole tokens of both sides cover without a gap; groups
    are numbered from 0 in the order of the text. Tokens without bytes are in none.
    """
    common = np.intersect1d(_boundaries(student), _boundaries(teacher), assume_unique=True)
    pieces = [_pieces(side, common) for side in (student, teacher)]
    whole = np.ones(max(0, len(common) - 1), np.bool_)
    for side, piece in zip((student, teacher), pieces, strict=True):
        inside = piece != UNGROUPED
        covered = np.bincount(piece[inside], weights=(side.ends - side.starts)[inside], minlength=len(whole))
        whole &= covered == np.diff(common)
    # The last entry is what index -1 finds.
    number = np.append(np.where(whole, np.cumsum(whole) - 1, UNGROUPED), UNGROUPED)
    return number[pieces[0]], number[pieces[1]]


def _boundaries(side: Spans) -> IntArray:
    wide = side.starts < side.ends
    return np.unique(np.concatenate([side.starts[wide], side.ends[wide]]))


def _pieces(side: Spans, common: IntArray) -> IntArray:
    """The piece between two common boundaries that each token lies in, -1 for none."""
    if len(common) < 2:
        return np.full(len(side.starts), UNGROUPED, np.int64)
    piece = np.searchsorted(common, side.starts, side="right") - 1
    inside = (piece >= 0) & (piece < len(common) - 1) & (side.starts < side.ends)
    inside &= side.ends <= common[np.minimum(piece + 1, len(common) - 1)]
    return np.where(inside, piece, UNGROUPED)


def place(tokens: Sequence[bytes], content: bytes) -> tuple[Spans, BoolArray] | None:
    """Return where in ``content`` each token begins and ends, and which of them stand there byte for byte.

    ``tokens`` are those of one answer as a template wrote it: the content, perhaps trimmed or with text
    around it, and perhaps cut off at the end. A single space that a template or SentencePiece puts
    before the content belongs to the first token, which then begins with the content. None where the
    content is not found.
    """
    written = b"".join(tokens)
    inner = content.strip()
    lead = len(content) - len(content.lstrip())
    at = _find(written, inner)
    if at is None:
        return None
    widths = np.array([len(token) for token in tokens], np.int64)
    ends = np.cumsum(widths) - at + lead
    starts = ends - widths
    same = _equal_bytes(written, content, lead - at)
    # How many of the bytes before each place differ.
    running = np.concatenate([[0], np.cumsum(~same)])
    first, last = np.cumsum(widths) - widths, np.cumsum(widths)
    space = (starts == -1) & (widths > 1)
    space &= np.array([token[:1] == b" " for token in tokens], np.bool_)
    starts, first = np.where(space, 0, starts), np.where(space, first + 1, first)
    return Spans(starts, ends), (running[last] == running[first]) & (starts < ends)


def _find(written: bytes, inner: bytes) -> int | None:
    """The place of the content without white space around it, or of its beginning where the end is cut off."""
    if not inner:
        return None
    at = written.find(inner)
    if at >= 0:
        return at
    begun = written.lstrip()
    return len(written) - len(begun) if begun and inner.startswith(begun) else None


def _equal_bytes(written: bytes, content: bytes, shift: int) -> BoolArray:
    """Whether byte i of ``written`` is byte i + shift of ``content``, bool [len(written)]; False outside it."""
    ours, theirs = np.frombuffer(written, np.uint8), np.frombuffer(content, np.uint8)
    at = np.arange(len(ours)) + shift
    inside = (at >= 0) & (at < len(theirs))
    same = np.zeros(len(ours), np.bool_)
    same[inside] = ours[inside] == theirs[at[inside]]
    return same
