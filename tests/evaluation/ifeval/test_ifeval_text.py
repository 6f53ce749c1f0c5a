"""Words, sentences and paragraphs by rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.evaluation.ifeval.text import (
    ABBREVIATIONS,
    cased_words,
    divided_paragraphs,
    sentences,
    spaced_paragraphs,
    split_on,
    words,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("No terminator at all", 1),
        ("One. Two! Three? Four", 4),
        ("One.Two", 1),  # no white space behind the full stop
        ("Dr. Smith met Mrs. Jones at 5 p.m. yesterday. They spoke.", 2),
        ("She left at 5 p.m. Then he came.", 2),
        ("It costs 3.50 dollars, e.g. for one. Or two.", 2),
        ("J. R. Smith wrote it. I read it.", 2),
        ("It was me and I. Then nobody.", 2),
        ("Wait... what? Yes!!! Really?!", 4),
        ('He said "Stop." Then he left. (Truly.) End.', 4),
        ("1. First point here\n2. Second point here", 1),
        ("There were 12. Then 13.", 2),
        ("a line\nand another line\n\nand a third", 1),  # as with Punkt, a break alone ends none
        ("**Bold.** Plain.", 2),
        ("第一句。第二句！第三句", 3),
        ("He works for Acme Inc. and is happy. She works for Acme Inc. She is too.", 3),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(sentences(text)) == count


def test_words_are_ifevals_and_cased_words_are_peoples() -> None:
    assert words("Don't stop, e-mail me_now 3.5!") == ["Don", "t", "stop", "e", "mail", "me_now", "3", "5"]
    assert cased_words("DON'T stop, E-MAIL _me_ U.S.") == ["DON'T", "stop", "E-MAIL", "me", "U.S"]


def test_paragraphs() -> None:
    assert divided_paragraphs("one\n***\ntwo *** three") == ["one", "two", "three"]
    assert divided_paragraphs("***\none\n***") == ["one"]
    assert divided_paragraphs("one *** *** two") is None
    assert spaced_paragraphs("a\nb\n\nc\n \n\nd\n") == ["a\nb", "c", "d"]
    assert split_on("", "x") == []


@given(st.text(max_size=60))
def test_any_text_is_split_without_loss(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) in "".join(text.split()) or len(sentences(text)) > 1
    assert all(sentence.strip() for sentence in sentences(text))
    assert len(sentences(text + " " + text)) <= 2 * len(sentences(text)) + 1


@given(st.lists(st.from_regex(r"\A[A-Z][a-z]{3,8}( [a-z]{3,8}){1,4}\Z"), min_size=1, max_size=6))
def test_plain_sentences_are_counted(parts: list[str]) -> None:
    safe = [p for p in parts if p.split()[-1] not in ABBREVIATIONS]
    assert len(sentences(" ".join(p + "." for p in safe))) == len(safe)
