"""Words, shingles, ROUGE-L and distinct-n, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.synthesis.words import distinct_n, jaccard, nearest_by_rouge_l, rouge_l, shingles, words

SEA, SKY = words("write a short poem about the sea"), words("write a short poem about the sky")
tokens = st.lists(st.sampled_from("abcd"), max_size=12).map(tuple)


def subsequence_length(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """The textbook table, row by row."""
    row = [0] * (len(b) + 1)
    for x in a:
        new = [0]
        for j, y in enumerate(b):
            new.append(row[j] + 1 if x == y else max(new[-1], row[j + 1]))
        row = new
    return row[-1]


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert words("Where did MY money go? (top-up)") == ("where", "did", "my", "money", "go", "top", "up")
    assert words("余额 is 5€") == ("余", "额", "is", "5")
    assert words(" ...") == ()


def test_rouge_l() -> None:
    # LCS "the cat sat" = 3 of 6 and of 4 words: P = 3/6, R = 3/4, F1 = 2 * .375 / 1.25 = .6.
    assert rouge_l(words("the cat sat on the mat"), words("the cat sat down")) == pytest.approx(0.6)
    # Six of seven words in order: F1 = 6/7.
    assert rouge_l(SEA, SKY) == pytest.approx(0.857143, abs=1e-6)
    assert rouge_l((), ()) == rouge_l(SEA, ()) == 0


@given(tokens, tokens)
def test_rouge_l_is_the_textbook_formula(a: tuple[str, ...], b: tuple[str, ...]) -> None:
    common = subsequence_length(a, b)
    expected = 0.0
    if common:
        precision, recall = common / len(a), common / len(b)
        expected = 2 * precision * recall / (precision + recall)
    assert rouge_l(a, b) == pytest.approx(expected)


@given(tokens, st.lists(tokens, max_size=6), st.sampled_from([0.3, 0.5, 0.7]))
def test_nearest_is_the_first_above(candidate: tuple[str, ...], pool: list[tuple[str, ...]], above: float) -> None:
    scores = [rouge_l(candidate, other) for other in pool]
    expected = next(((i, s) for i, s in enumerate(scores) if s > above), None)
    assert nearest_by_rouge_l(candidate, pool, above) == expected


def test_shingles_and_their_overlap() -> None:
    # Five 3-shingles each, the last differs: 4 / 6.
    assert len(shingles(SEA, 3)) == 5
    assert jaccard(shingles(SEA, 3), shingles(SKY, 3)) == pytest.approx(0.666667, abs=1e-6)
    assert shingles(("a", "b"), 3) == {("a", "b")}
    assert shingles((), 3) == frozenset()
    assert jaccard(frozenset(), frozenset()) == 0


def test_distinct_n() -> None:
    texts = [words("the cat sat on the mat"), words("the cat sat down")]
    # the cat sat on mat down = 6 of 10; bigrams: 5 + 3, "the cat" and "cat sat" twice: 6 of 8.
    assert distinct_n(texts, 1) == pytest.approx(0.6)
    assert distinct_n(texts, 2) == pytest.approx(0.75)
    # Seven words: the whole first text and "the": {the cat sat on mat} of 7.
    assert distinct_n(texts, 1, budget=7) == pytest.approx(5 / 7)
    assert distinct_n([], 1) == 0
